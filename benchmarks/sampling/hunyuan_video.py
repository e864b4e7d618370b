"""Times HunyuanVideo at real size on one GPU, in few steps: a step takes seconds.

    python -m benchmarks.sampling.hunyuan_video --size 720x1280 --out FILE
    python -m benchmarks.sampling.hunyuan_video --size 544x960 --out FILE

129 frames, random weights. Programs compile in processes of their own, side by side,
then run one after the other: bf16 weights with XLA and cuDNN; INT8 with 8-bit
attention; the same with half of the blocks of keys; PyTorch's blocks, few of them,
scaled. A run is two steps: both computed, or the second one skipped whole. From the two
follow a step that is computed (F) and one that is skipped (S), and from them what a
step takes where a third is skipped, (2 F + S) / 3. Recorded are the seconds of all
runs. The threshold of sparse attention is looked for on two blocks of each kind at the
same size; the share of the keys in the record is that of the run.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sixbit_jax.benchmark.plans import BASELINE

SIZES = {"544x960": (33, 68, 120), "720x1280": (33, 90, 160)}
INT8, SPARSE, TORCH = "int8, 8-bit attention", "int8, 8-bit attention, sparse", "torch"
JOBS = (BASELINE, INT8, SPARSE, TORCH)
DENSITY = 0.5
# Of the blocks of either kind, where a threshold is looked for.
_FEW = 2
_THIRD = "whole steps, a third"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options; those that the driver of `sixbit bench` needs are added."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="720x1280")
    parser.add_argument("--out", type=Path, required=True, help="results file (JSON)")
    parser.add_argument("--minutes", type=float, default=4.0, help="in all (4)")
    parser.add_argument("--only", action="append", default=[], choices=JOBS)
    parser.add_argument(
        "--layers", type=int, help="blocks of either kind, to try the script (all)"
    )
    parser.add_argument("--commit", help="for machines without the repository")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def words(args: argparse.Namespace) -> list[str]:
    """The options as a command line."""
    found = ["--size", args.size, "--out", str(args.out)]
    found += ["--minutes", str(args.minutes)]
    for name in ("layers", "commit"):
        if (value := getattr(args, name)) is not None:
            found += [f"--{name}", str(value)]
    return [*found, *(word for name in args.only for word in ("--only", name))]


def subject_of(args: argparse.Namespace, layers: int | None = None) -> Any:
    """What is sampled; with fewer blocks of either kind where that is asked."""
    from sixbit_jax.benchmark.subject import CONFIGS, Subject

    config = CONFIGS["hunyuan-video"]
    layers = args.layers if layers is None else layers
    if layers is not None:
        changes: Any = {"num_layers": layers, "num_single_layers": layers}
        config = dataclasses.replace(config, **changes)
    return Subject("hunyuan-video", config, SIZES[args.size])


class TwoSteps:
    """A program of two steps, and its plans: all computed, or the second one skipped.

    Args:
      subject: what is sampled.
      name: of the program.
    """

    def __init__(self, subject: Any, name: str):
        from sixbit_jax.benchmark.plans import Spec
        from sixbit_jax.benchmark.programs import Sampling

        options: dict[str, Any] = {"fractions": (0.0, 1.0), "skips": "steps"}
        if name == BASELINE:
            options = {
                "routes": "chain",
                "attention": "bf16",
                "kernels": False,
                "fractions": (0.0,),
            }
        if name == SPARSE:
            options["densities"] = (DENSITY,)
        self.name, self.spec = name, Spec(name, **options)
        self.work = Sampling(subject, self.spec, steps=2, trace=None)

    def policies(self, tau: float) -> dict[str, list[Any]]:
        """By plan."""
        from sixbit_jax.benchmark.plans import policies

        grid = self.work.grid
        found = policies(
            self.spec, grid.num_blocks, len(grid.sites), self.work.steps, tau=tau
        )
        names = {0.0: "computed", 1.0: "skipped"}
        return {names[fraction]: plan for fraction, plan in found.items()}

    def seconds(self, found: list[Any], runs: int) -> tuple[list[float], Any]:
        """Of every run, and what the last one returned."""
        import jax

        inputs, times, result = self.work.inputs_for(found), [], None
        for _ in range(runs):
            began = time.perf_counter()
            result = jax.block_until_ready(self.work.compiled(self.work.params, inputs))
            times.append(time.perf_counter() - began)
        return times, result


def measure(program: TwoSteps, tau: float, facts: dict[str, Any]) -> Iterator[dict]:
    """Records of a program that is compiled and built."""
    import numpy as np

    from sixbit_jax.policies import attention_density

    plans = program.policies(tau)
    times: dict[str, list[float]] = {}
    result: Any = None
    density = 1.0
    # The run that skips comes first: what only a first run costs is in neither time.
    for plan in reversed(plans):
        first = not times
        runs = 2 if first else 1
        times[plan], result = program.seconds(plans[plan], runs)
        trace = result.trace
        if plan == "computed":
            density = attention_density(trace.attention_density, trace.skip)
    best = {plan: seconds[-1] for plan, seconds in times.items()}
    computed = best["computed"] / 2
    common = {
        **program.work._record(0.0, computed, best["computed"], [0.0, 0.0], density),
        **facts,
        "runs_s": times,
        "finite": bool(np.isfinite(np.asarray(result.latents)).all()),
    }
    del common["spread"]
    yield common
    if "skipped" not in best:
        return
    skipped = best["skipped"] - computed
    step = (2 * computed + skipped) / 3
    derived = {
        "program": f"{program.name}, {_THIRD}",
        "skip_fraction": 1 / 3,
        "step_ms": step * 1e3,
        "skipped_step_ms": skipped * 1e3,
        "derived": "(2 computed + 1 skipped) / 3",
    }
    yield {k: v for k, v in common.items() if k != "tflops"} | derived


def _few(args: argparse.Namespace) -> TwoSteps:
    """The same size with few blocks."""
    program = TwoSteps(subject_of(args, _FEW), SPARSE)
    program.work.compile()
    return program


def find_tau(program: TwoSteps) -> tuple[float, dict[str, Any]]:
    """The threshold that computes half of the keys, of a program with few blocks."""
    from sixbit_jax.calibration import find_sparse_tau

    program.work.build()

    def record(tau: float) -> list[Any]:
        _, result = program.seconds(program.policies(tau)["computed"], 1)
        return [result.trace]

    fit = find_sparse_tau(record, DENSITY, tolerance=0.01)
    del program.work.params
    facts = {"target_density": DENSITY, "sparse_tau": fit.tau}
    return fit.tau, facts | {"density_of_few_blocks": fit.density}


def prepare(args: argparse.Namespace) -> Callable[[], Iterator[dict[str, Any]]]:
    """Compiles a job; returns what measures it."""
    subject = subject_of(args)
    if args.job == TORCH:
        from benchmarks.sampling.peers_torch import prepare_peers

        return prepare_peers(subject)
    program = TwoSteps(subject, args.job)
    few = _few(args) if args.job == SPARSE else None
    program.work.compile()

    def run() -> Iterator[dict[str, Any]]:
        tau, facts = (0.0, {}) if few is None else find_tau(few)
        began = time.perf_counter()
        program.work.build()
        facts["build_s"] = time.perf_counter() - began
        yield from measure(program, tau, facts)

    return run


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    args = parse(argv)
    if args.job:
        from sixbit_jax.benchmark.records import machine
        from sixbit_jax.benchmark.workers import wait_for_turn

        run = prepare(args)
        wait_for_turn(machine())
        for record in run():
            print(json.dumps(record), flush=True)
        return 0
    from sixbit_jax.benchmark.sampling import Driver

    driver = Driver(args, module="benchmarks.sampling.hunyuan_video", argv=words(args))
    driver.batch([name for name in JOBS if not args.only or name in args.only])
    measured = [r for r in driver.records if "failure" not in r]
    driver.say(f"{len(measured)} records in {args.out}")
    return 0 if measured else 1


if __name__ == "__main__":
    sys.exit(main())
