"""Times one video on several devices against the same video on one of them.

    python -m benchmarks.sampling.mesh --model 5b --model wan-14b --devices 2 --out FILE

For each model: with guidance, on one device, then with its branches apart, then with
its weights split; without guidance, on one device, then with its tokens split. Each
program runs with nothing skipped and with whole steps skipped. Weights are random.
`efficiency` is the time on one device / (devices x time on all of them), of the same
work. Every program compiles in a process of its own, side by side; then they run one
after the other. The results file is rewritten after every record.

On GPUs NCCL's multicast stays off, which the first lines here see to.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("NCCL_NVLS_ENABLE", "0")

MODULE = "benchmarks.sampling.mesh"
PROGRAM = "int8, 8-bit attention, whole steps"
ONE = "one"


@dataclass(frozen=True)
class Case:
    """One program.

    Attributes:
      model: its name.
      mesh: devices by axis; empty for one device.
      guided: whether there are two guidance branches.
    """

    model: str
    mesh: tuple[tuple[str, int], ...]
    guided: bool

    @property
    def devices(self) -> int:
        """How many it runs on."""
        return math.prod(size for _, size in self.mesh)

    @property
    def name(self) -> str:
        """What its process is told."""
        guided = "guided" if self.guided else "alone"
        return f"{self.model} {shown(self.mesh) or ONE} {guided}"

    @classmethod
    def parse(cls, name: str) -> "Case":
        """The inverse of `name`."""
        model, sizes, guided = name.rsplit(" ", 2)
        mesh = () if sizes == ONE else tuple(parsed(sizes).items())
        return cls(model, mesh, guided == "guided")


def shown(mesh: Sequence[tuple[str, int]]) -> str:
    """guidance=2,sequence=4."""
    return ",".join(f"{name}={size}" for name, size in mesh)


def parsed(text: str) -> dict[str, int]:
    """The inverse of `shown`."""
    return {name: int(size) for name, size in (x.split("=") for x in text.split(","))}


def cases(model: str, devices: int, meshes: Sequence[str] = ()) -> list[Case]:
    """The programs of a model, in the order they run.

    Args:
      model: its name.
      devices: how many share the video.
      meshes: to measure instead of the usual ones, as on the command line.
    """
    if meshes:
        split = [parsed(mesh) for mesh in meshes]
    else:
        rest = devices // 2
        split = [
            {"guidance": 2} | ({"sequence": rest} if rest > 1 else {}),
            {"guidance": 2, "fsdp": rest} if rest > 1 else {"fsdp": 2},
            {"sequence": devices},
        ]
    found: list[Case] = []
    for guided in (True, False):
        # Tokens alone are split where there is no second branch to move.
        chosen = [mesh for mesh in split if guided is not (set(mesh) == {"sequence"})]
        if chosen:
            found.append(Case(model, (), guided))
            found += [Case(model, tuple(mesh.items()), guided) for mesh in chosen]
    return found


class Run:
    """A compiled program of one case."""

    def __init__(self, case: Case, args: argparse.Namespace):
        import jax

        from sixbit_jax.benchmark import subject as models
        from sixbit_jax.benchmark.plans import SPECS, policies
        from sixbit_jax.meshes import make_mesh
        from sixbit_jax.sampling.api import block_grid, prepare
        from sixbit_jax.sampling.loop import run_program
        from sixbit_jax.sampling.mesh import compiler_options
        from sixbit_jax.sampling.options import Execution, Prompt

        self.case, self.args = case, args
        self.subject = models.subject(
            case.model, frames=args.frames, height=args.height, width=args.width
        )
        self.spec = next(spec for spec in SPECS if spec.name == args.program)
        model = models.random_model(
            self.subject.config, quantized=self.spec.quantized, abstract=True
        )
        self.grid = block_grid(model)
        self.policies = policies(
            self.spec, self.grid.num_blocks, len(self.grid.sites), args.steps
        )
        text, negative = (models.text_embeddings(self.subject, i) for i in (1, 2))
        mesh = make_mesh(dict(case.mesh)) if case.mesh else None
        self.prepared = prepare(
            model,
            models.scheduler_of(self.subject),
            Prompt(text, negative),
            latent_shape=self.subject.latent_shape,
            num_steps=args.steps,
            guidance=None if case.guided else 1.0,
            policy=next(iter(self.policies.values()))[0],
            execution=Execution(
                attention="int8" if self.spec.attention == "int8" else None,
                cache_format=self.spec.cache_format,
            ),
            mesh=mesh,
        )
        started = time.perf_counter()
        program = self.prepared.program
        lowered = jax.jit(run_program, static_argnums=(0, 1)).lower(*self.prepared)
        options = compiler_options(program.mesh)
        self.compiled = lowered.compile(compiler_options=options)
        self.compile_seconds = time.perf_counter() - started

    def records(self) -> Iterator[dict[str, Any]]:
        """Times every plan; makes the weights first."""
        import jax
        import numpy as np
        from flax import nnx

        from sixbit_jax.benchmark import subject as models
        from sixbit_jax.benchmark.programs import time_calls
        from sixbit_jax.sampling.mesh import parameter_specs, placed

        program = self.prepared.program
        model = models.random_model(self.subject.config, quantized=self.spec.quantized)
        params = nnx.split(model)[1]
        if program.mesh is not None:
            specs = parameter_specs(params, program.site.axes)
            params = placed(params, program.mesh, specs)
        # Those of one device alone are let go of.
        del model
        weights = sum(
            leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params)
        )
        first: float | None = None
        for fraction, found in self.policies.items():
            inputs = self._inputs(found)
            times, result = time_calls(
                lambda inputs=inputs: self.compiled(params, inputs),
                self.args.repeats,
                warm=first is not None,
            )
            seconds = statistics.median(times)
            step = seconds / self.args.steps
            if first is None:
                first = step
            elif self.args.steps > 1:
                # The first step computes every block: it is taken off.
                step = (seconds - first) / (self.args.steps - 1)
            finite = bool(np.isfinite(np.asarray(result.latents)).all())
            skipped = float(np.asarray(result.trace.skip)[1:].mean())
            yield self._record(fraction, step, times, weights) | {
                "finite": finite,
                "skipped": skipped,
            }

    def _inputs(self, found: list[Any]) -> Any:
        """The program's inputs, with the plans of another policy of the program."""
        import jax
        import numpy as np

        from sixbit_jax.sampling.mesh import input_specs, placed

        program = self.prepared.program
        states = [
            found[branch % len(found)].init(
                self.grid._replace(branch=branch, num_steps=self.args.steps)
            )
            for branch in range(program.branches)
        ]
        state = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
        inputs = self.prepared.inputs._replace(policy_state=state)
        if program.mesh is None:
            return jax.device_put(inputs)
        return placed(inputs, program.mesh, input_specs(inputs, program.site.axes))

    def _record(
        self, fraction: float, step: float, times: list[float], weights: int
    ) -> dict[str, Any]:
        import jax

        plan: Any = self.compiled.memory_analysis()
        frames, height, width = self.subject.size
        stats = jax.local_devices()[-1].memory_stats() or {}
        return {
            "model": self.subject.name,
            "frames": frames,
            "height": height,
            "width": width,
            "program": self.spec.name,
            "guided": self.case.guided,
            "devices": self.case.devices,
            "mesh": shown(self.case.mesh) or "guidance=1,sequence=1",
            "skip_fraction": fraction,
            "steps": self.args.steps,
            "step_ms": step * 1e3,
            "spread": (max(times) - min(times)) / statistics.median(times),
            "weight_bytes": weights,
            "temporary_bytes": plan.temp_size_in_bytes,
            "argument_bytes": plan.argument_size_in_bytes,
            "peak_bytes": stats.get("peak_bytes_in_use", 0),
            "compile_seconds": self.compile_seconds,
        }


def with_efficiency(found: list[dict[str, Any]]) -> None:
    """Adds what needs two records: `efficiency`, and fsdp against guidance alone."""

    def key(record: Mapping[str, Any]) -> tuple:
        names = ("model", "frames", "height", "width", "guided", "skip_fraction")
        return tuple(record[name] for name in names)

    measured = [record for record in found if "step_ms" in record]
    one = {key(record): record for record in measured if record["devices"] == 1}
    guidance = {
        (*key(record), record["devices"]): record
        for record in measured
        if "guidance=2" in record["mesh"] and "fsdp" not in record["mesh"]
    }
    for record in measured:
        alone = one.get(key(record))
        if alone is not None:
            whole = record["devices"] * record["step_ms"]
            record["efficiency"] = alone["step_ms"] / whole
        same = guidance.get((*key(record), record["devices"]))
        if same is not None and "fsdp" in record["mesh"]:
            record["speed_of_guidance"] = same["step_ms"] / record["step_ms"]
            record["weights_of_guidance"] = (
                record["weight_bytes"] / same["weight_bytes"]
            )


def _work(args: argparse.Namespace) -> None:
    """The process of one case."""
    from sixbit_jax.benchmark import records
    from sixbit_jax.benchmark.workers import wait_for_turn

    run = Run(Case.parse(args.case), args)
    wait_for_turn(records.machine())
    for record in run.records():
        print(json.dumps(record), flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--model", action="append", help="5b, wan-14b, ...; repeatable")
    made.add_argument("--devices", type=int, default=2, help="that share a video (2)")
    made.add_argument(
        "--mesh", action="append", default=[], help="instead: guidance=2,sequence=2"
    )
    for name in ("frames", "height", "width"):
        made.add_argument(f"--{name}", type=int, help="of the latents")
    made.add_argument("--program", default=PROGRAM, help="by name, as `sixbit bench`")
    made.add_argument("--steps", type=int, default=4, help="steps of a run (4)")
    made.add_argument("--repeats", type=int, default=1, help="runs per plan (1)")
    made.add_argument("--out", type=Path, required=True, help="results file (JSON)")
    made.add_argument("--commit", help="for machines without the repository")
    made.add_argument("--case", help=argparse.SUPPRESS)
    return made


def words(args: argparse.Namespace) -> list[str]:
    """The options as a command line."""
    found = [word for model in args.model for word in ("--model", model)]
    found += [word for mesh in args.mesh for word in ("--mesh", mesh)]
    for name in ("frames", "height", "width", "commit"):
        if (value := getattr(args, name)) is not None:
            found += [f"--{name}", str(value)]
    for name in ("devices", "program", "steps", "repeats"):
        found += [f"--{name}", str(getattr(args, name))]
    return [*found, "--out", args.out.name]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all cases, or one of them."""
    args = parser().parse_args(argv)
    args.model = args.model or ["5b"]
    if args.case:
        _work(args)
        return 0
    from sixbit_jax.benchmark import records
    from sixbit_jax.benchmark.sampling import PACKAGES
    from sixbit_jax.benchmark.workers import in_turn

    names = [
        case.name
        for model in args.model
        for case in cases(model, args.devices, args.mesh)
    ]
    found: list[dict[str, Any]] = []
    started, argv = time.monotonic(), words(args)
    head: dict[str, Any] | None = None
    for name, record in in_turn(
        ["-m", MODULE, *argv, "--case"], names, keeps_memory=True
    ):
        case = Case.parse(name)
        facts = {"model": case.model, "mesh": shown(case.mesh), "guided": case.guided}
        found.append(facts | record)
        with_efficiency(found)
        if head is None:
            head = records.header(
                ["python", "-m", MODULE, *argv],
                commit_id=args.commit,
                packages=PACKAGES,
            )
        records.write(args.out, head, found)
        seconds = time.monotonic() - started
        text = record.get("failure") or (
            f"skip {record['skip_fraction']:.2f} {record['step_ms']:9.1f} ms/step "
            f"efficiency {found[-1].get('efficiency', 1):.3f}"
        )
        print(f"{seconds:6.1f} s  {name}: {text}", file=sys.stderr, flush=True)
    return 0 if any("step_ms" in record for record in found) else 1


if __name__ == "__main__":
    sys.exit(main())
