"""Times the sampler at real size, with random weights, against the bf16 program.

    sixbit bench --model 5b --out FILE [--minutes 8]
    sixbit bench --model 2b --frames 7 --height 60 --width 90 --out F
    sixbit bench --model wan-14b --out F

`python -m benchmarks.sampling`, in a checkout, takes the same arguments and measures
PyTorch in the same run.

Every program compiles in a process of its own, side by side; then they run one after
the other, so that each has the device to itself, its own peak of memory, and a crash of
one leaves the others. Skips and routes are replayed plans (or `--trace`): random
weights have no meaningful deltas. The results file is rewritten after every record.
"""

import argparse
import json
import queue
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sixbit_jax.benchmark import records
from sixbit_jax.benchmark.workers import Worker, wait_for_turn

PARTS, TORCH = "parts", "torch"
PACKAGES = (*records.PACKAGES, "jax-cuda13-plugin", "torch", "diffusers")
# Of the time, what compilation may take before the programs that are ready run.
_COMPILE_SHARE = 0.5
MODULE = "sixbit_jax.benchmark.sampling"

type Peers = Callable[[Any], Callable[[], Iterator[dict]]]
"""(subject) -> a function that measures other libraries and yields their records."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, which `sixbit bench` shares."""
    parser.add_argument(
        "--model",
        default="5b",
        help="5b, 2b, 1.5, wan-1.3b, wan-14b, hunyuan-video or config.json",
    )
    for name in ("frames", "height", "width"):
        parser.add_argument(
            f"--{name}", type=int, help="of the latents (the model's default video)"
        )
    parser.add_argument("--out", type=Path, required=True, help="results file (JSON)")
    parser.add_argument(
        "--trace",
        type=Path,
        help=".npz with skip and route of a real run: replayed, and once more with "
        "its skips and INT8 everywhere",
    )
    parser.add_argument("--steps", type=int, default=4, help="steps of a run (4)")
    parser.add_argument("--repeats", type=int, default=2, help="runs per plan (2)")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="nothing new starts after (8)"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="programs to run, by name; also parts, torch; repeatable (all)",
    )
    parser.add_argument(
        "--jobs", type=int, default=16, help="processes that compile at a time (16)"
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="IMPLEMENTATION",
        help="of kernels, such as mosaic_gpu: others run in its place; repeatable",
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--commit", help="for machines without the repository")


def words(args: argparse.Namespace) -> list[str]:
    """The options as a command line, which the processes of the jobs get."""
    found = ["--model", args.model]
    for name in ("frames", "height", "width", "trace", "commit"):
        if (value := getattr(args, name)) is not None:
            found += [f"--{name}", str(value)]
    for name in ("out", "steps", "repeats", "minutes", "jobs"):
        found += [f"--{name}", str(getattr(args, name))]
    for option in ("only", "without"):
        for value in getattr(args, option):
            found += [f"--{option}", value]
    return found


def job_names(args: argparse.Namespace, *, peers: bool = False) -> list[str]:
    """Programs and measurements to run, most important first.

    Args:
      args: the command line.
      peers: whether other libraries are measured too.

    Raises:
      ValueError: `--only` names something else.
    """
    from sixbit_jax.benchmark.plans import INT8_TRACE, SPECS

    programs = [spec.name for spec in SPECS]
    names = [*programs[:5], PARTS, *programs[5:], *([TORCH] if peers else [])]
    if args.trace is not None:
        names[5:5] = ["trace", INT8_TRACE]
    if unknown := set(args.only) - set(names):
        raise ValueError(f"--only: expected some of {names}, found {sorted(unknown)}")
    return [name for name in names if not args.only or name in args.only]


def run_job(
    args: argparse.Namespace,
    name: str,
    ready: Callable[[], object] = lambda: None,
    *,
    peers: Peers | None = None,
) -> Iterator[dict]:
    """Compiles, calls `ready`, which returns when the device is free, and measures.

    Yields:
      Flat records.
    """
    from pallas_kernels.dispatch import without
    from sixbit_jax.benchmark.subject import subject as subject_of

    subject = subject_of(
        args.model, frames=args.frames, height=args.height, width=args.width
    )
    with without(*args.without):
        run = _compiled(args, name, subject, peers)
    ready()
    yield from run()


def _compiled(
    args: argparse.Namespace, name: str, subject: Any, peers: Peers | None
) -> Callable[[], Iterator[dict]]:
    """What measures a program, the parts or other libraries, compiled."""
    if name == TORCH and peers is not None:
        return peers(subject)
    if name == PARTS:
        from sixbit_jax.benchmark.parts import compile_parts

        return compile_parts(subject)
    from sixbit_jax.benchmark.programs import compile_program

    return compile_program(
        subject, name, steps=args.steps, repeats=args.repeats, trace=args.trace
    )


def _work(args: argparse.Namespace, peers: Peers | None) -> None:
    """The process of one job: a line when it is ready, then one per record."""

    def ready() -> None:
        wait_for_turn(records.machine())

    for record in run_job(args, args.job, ready, peers=peers):
        print(json.dumps(record), flush=True)


class Driver:
    """Compiles side by side, runs in turn, and keeps the results file current."""

    def __init__(
        self,
        args: argparse.Namespace,
        *,
        module: str = MODULE,
        peers: bool = False,
        argv: Sequence[str] | None = None,
    ):
        self.args = args
        self.argv = words(args) if argv is None else list(argv)
        self.module, self.peers = module, peers
        self.started = time.monotonic()
        self.records: list[dict[str, Any]] = []
        self.machine = "unknown"
        self.lines: queue.Queue = queue.Queue()

    def say(self, text: str) -> None:
        """A line with the time since the start."""
        seconds = time.monotonic() - self.started
        print(f"{seconds:6.1f} s  {text}", file=sys.stderr, flush=True)

    def left(self, share: float = 1.0) -> float:
        """Seconds until a share of the time is over."""
        return share * 60 * self.args.minutes - (time.monotonic() - self.started)

    def add(self, record: dict[str, Any]) -> None:
        """Takes a record and writes the file."""
        self.records.append(record)
        finish(self.records)
        # Where the file was put says nothing about the measurement.
        out = str(self.args.out)
        argv = [self.args.out.name if word == out else word for word in self.argv]
        head = records.header(
            ["python", "-m", self.module, *argv],
            machine_name=self.machine,
            commit_id=self.args.commit,
            packages=PACKAGES,
        )
        records.write(self.args.out, head, self.records)
        self.say(shown(record))

    def run(self) -> None:
        """All jobs; returns when they ran or the time is over."""
        names = job_names(self.args, peers=self.peers)
        for first in range(0, len(names), max(self.args.jobs, 1)):
            self.batch(names[first : first + max(self.args.jobs, 1)])

    def batch(self, names: Sequence[str]) -> None:
        """Jobs that compile side by side and run in turn."""
        if self.left() < 30:
            self.say(f"no time left for {', '.join(names)}")
            return
        base = ["-m", self.module, *self.argv, "--job"]
        workers = {name: Worker(name, [*base, name], self.lines) for name in names}
        try:
            ready = self._wait_ready(workers)
            for name in names:
                if name in ready:
                    self._measure(workers[name])
        finally:
            for worker in workers.values():
                worker.stop()

    def _wait_ready(self, workers: dict[str, Worker]) -> set[str]:
        """The workers that compiled; the others are stopped and recorded."""
        waiting, ready = set(workers), set()
        end = time.monotonic() + _COMPILE_SHARE * self.left()
        while waiting:
            try:
                name, line = self.lines.get(timeout=max(end - time.monotonic(), 0.01))
            except queue.Empty:
                break
            if name not in waiting:
                continue  # The end of a worker of an earlier batch.
            waiting.discard(name)
            if line is None:
                self.add({"program": name, "failure": workers[name].failure()})
                continue
            ready.add(name)
            self.machine = line["ready"]
            self.say(f"{name}: compiled")
        for name in waiting:
            workers[name].stop()
            self.add({"program": name, "failure": "not compiled in time"})
        return ready

    def _measure(self, worker: Worker) -> None:
        if self.left() < 5:
            self.say(f"{worker.name}: no time left")
            return
        worker.go()
        while True:
            try:
                name, line = self.lines.get(timeout=max(self.left(), 1))
            except queue.Empty:
                worker.stop()
                self.add({"program": worker.name, "failure": "no time left"})
                return
            if name != worker.name:
                continue  # The end of another that was stopped or failed.
            if line is not None:
                self.add(line)
                continue
            if worker.process.returncode:
                self.add({"program": name, "failure": worker.failure()})
            worker.stop()
            return


def finish(found: list[dict[str, Any]]) -> None:
    """Adds what needs several records: factors over the baseline, and breakdowns."""
    from sixbit_jax.benchmark.parts import breakdown
    from sixbit_jax.benchmark.plans import BASELINE

    base = next((r for r in found if r.get("program") == BASELINE), {})
    parts = [record for record in found if "part" in record]
    for record in found:
        if "total_ms" not in record:
            continue
        if "step_ms" in base:
            record["speedup"] = base["step_ms"] / record["step_ms"]
            record["weights_smaller"] = base["weight_bytes"] / record["weight_bytes"]
            record["peak_smaller"] = base["peak_bytes"] / record["peak_bytes"]
        if parts:
            record["part_ms"] = breakdown(record, parts)


def shown(record: dict[str, Any]) -> str:
    """One line for the terminal."""
    if "failure" in record:
        return f"{record.get('program', record.get('op'))}: {record['failure']}"
    if "part" in record:
        where = f"{record['part']:13} {record['op']:28} {record['variant']:10}"
        return f"{where} {record['op_ms']:9.3f} ms {record['step_ms']:8.1f} ms/step"
    line = f"{record['program']:46} skip {record.get('skip_fraction', 0):4.2f} "
    if record.get("density", 1.0) < 1:
        line += f"keys {record['density']:4.2f} "
    line += f"{record['step_ms']:9.1f} ms/step"
    if "peak_bytes" in record:
        line += (
            f" {record['tflops']:6.0f} TFLOP/s, "
            f"peak {record['peak_bytes'] / 1e9:.2f} GB "
            f"(weights {record['weight_bytes'] / 1e9:.2f}, cache "
            f"{record['cache_bytes'] / 1e9:.2f}), x{record.get('speedup', 1):.2f}"
        )
    return line


def run(
    args: argparse.Namespace, *, module: str = MODULE, peers: Peers | None = None
) -> int:
    """Runs the benchmark, or one job of it.

    Args:
      args: the command line.
      module: that the processes of the jobs run; it must hand in the same peers.
      peers: measures other libraries, or None.
    """
    from sixbit_jax.benchmark.subject import subject as subject_of

    if args.job:
        _work(args, peers)
        return 0
    if args.steps < 3:
        raise ValueError(f"--steps: expected at least 3, found {args.steps}")
    subject_of(args.model, frames=args.frames, height=args.height, width=args.width)
    driver = Driver(args, module=module, peers=peers is not None)
    driver.run()
    measured = [r for r in driver.records if "failure" not in r]
    driver.say(f"{len(measured)} records in {args.out}")
    return 0 if measured else 1


def main(
    argv: Sequence[str] | None = None,
    *,
    module: str = MODULE,
    peers: Peers | None = None,
) -> int:
    """The command line; see `run`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return run(parser.parse_args(argv), module=module, peers=peers)


if __name__ == "__main__":
    sys.exit(main())
