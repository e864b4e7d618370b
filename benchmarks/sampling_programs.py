"""The sampling programs that are compared, each compiled once for several plans."""

import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from benchmarks import sampling_model
from benchmarks.sampling_model import Subject
from sixbit_jax.policies import Policy, chain, fixed
from sixbit_jax.routes import Route
from sixbit_jax.sampling import delta_cache
from sixbit_jax.sampling.api import block_grid, prepare
from sixbit_jax.sampling.loop import run_program

Routes = Literal["chain", "bf16", "int8", "nvfp4", "mixed"]
FRACTIONS = (0.0, 0.2, 0.33, 0.5)
BASELINE = "bf16"


@dataclasses.dataclass(frozen=True)
class Spec:
    """One compiled program and the plans it is run with.

    Attributes:
      name: in records.
      routes: "chain" is full precision on bf16 weights, the others run on NVFP4.
      attention: precision of the scores.
      cache_format: of the delta cache.
      fractions: of the blocks skipped in every step but the first; a program that
        has only 0 holds no cache.
      kernels: False leaves everything to XLA and cuDNN.
      batched: both guidance branches in one forward pass.
      skips: "rotating" blocks, other ones in every step, so that every block has a
        slot of the cache; the "same" blocks, so that it holds only those; or whole
        "steps", so that all blocks share one delta.
    """

    name: str
    routes: Routes = "int8"
    attention: Literal["bf16", "int8"] = "int8"
    cache_format: str = "bf16"
    fractions: tuple[float, ...] = FRACTIONS
    kernels: bool = True
    batched: bool = False
    skips: Literal["rotating", "same", "steps"] = "rotating"

    @property
    def quantized(self) -> bool:
        """Whether the weights are NVFP4."""
        return self.routes != "chain"


# In the order of their weight for the result: a run that is cut has the first ones.
SPECS = (
    Spec(BASELINE, "chain", "bf16", fractions=(0.0,), kernels=False),
    Spec("int8, 8-bit attention"),
    Spec("int8", attention="bf16"),
    Spec("int8, 8-bit attention, nvfp4 cache", cache_format="nvfp4"),
    Spec(
        "int8, 8-bit attention, nvfp4 cache of a third",
        cache_format="nvfp4",
        fractions=(0.0, 0.33),
        skips="same",
    ),
    Spec("int8, 8-bit attention, whole steps", fractions=(0.0, 0.33), skips="steps"),
    Spec("mixed, 8-bit attention, int8 cache", "mixed", cache_format="int8"),
    Spec("int8, 8-bit attention, no cache", fractions=(0.0,)),
    Spec("bf16, our attention", "chain", "bf16", fractions=(0.0,)),
    Spec("nvfp4", "nvfp4", "bf16", fractions=(0.0, 0.33)),
    Spec("int8, 8-bit attention, batched", fractions=(0.0, 0.33), batched=True),
    Spec("int8, 8-bit attention, int8 cache", cache_format="int8"),
    Spec("w4a16", "bf16", "bf16", fractions=(0.0,)),
)


def skip_plan(steps: int, blocks: int, fraction: float, kind: str) -> np.ndarray:
    """Skips `fraction` of the blocks, evenly spread, in every step but the first.

    Args:
      steps: denoising steps.
      blocks: L.
      fraction: rounded to whole blocks, or to whole steps.
      kind: see `Spec.skips`.

    Returns:
      bool [steps, L].
    """

    def spread(count: int) -> np.ndarray:
        row = np.zeros(count, bool)
        chosen = round(fraction * count)
        if chosen:
            row[np.floor((np.arange(chosen) + 0.5) * count / chosen).astype(int)] = True
        return row

    if kind == "steps":
        plan = np.repeat(np.append(False, spread(steps - 1))[:, None], blocks, 1)
    else:
        row, rotate = spread(blocks), kind == "rotating"
        plan = np.stack([np.roll(row, step if rotate else 0) for step in range(steps)])
    plan[0] = False
    return plan


def _route_table(routes: Routes, blocks: int, sites: int) -> np.ndarray:
    """[L, S]; mixed: INT8 and NVFP4 in turn, along blocks and along sites."""
    if routes == "mixed":
        turn = np.add.outer(np.arange(blocks), np.arange(sites)) % 2
        return np.where(turn, Route.INT8, Route.NVFP4).astype(np.int32)
    return np.full((blocks, sites), Route[routes.upper()], np.int32)


def policies(
    spec: Spec, blocks: int, sites: int, steps: int
) -> dict[float, list[Policy]]:
    """The policy of each skip fraction, all of one compiled program.

    Returns:
      By fraction, a list with one policy that every guidance branch shares.
    """
    if spec.routes == "chain":
        return {0.0: [chain()]}
    table = _route_table(spec.routes, blocks, sites)
    plans = {
        fraction: skip_plan(steps, blocks, fraction, spec.skips)
        for fraction in spec.fractions
    }
    used = np.any([plan.any(0) for plan in plans.values()], axis=0)
    slots = tuple(np.flatnonzero(used).tolist()) or False
    if slots and spec.skips != "same":
        slots = True
    group = None if spec.skips == "steps" else 1
    return {
        # A few steps round coarsely.
        (float(plan[1:].mean()) if spec.skips == "steps" else fraction): [
            fixed(skip=plan, route=table)._replace(skips=slots, group=group)
        ]
        for fraction, plan in plans.items()
    }


def replayed(path: Path, blocks: int, sites: int) -> tuple[float, list[Policy]]:
    """The decisions of a trace, for a model of any number of blocks.

    Args:
      path: an .npz with `skip` [steps, branches, L'] and `route`
        [steps, branches, L', S]; block b takes the decisions of block b L' / L.
      blocks, sites: of the model.

    Returns:
      The fraction of all blocks that is skipped, and a policy per guidance branch.

    Raises:
      ValueError: the arrays are missing or do not fit.
    """
    with np.load(path) as file:
        if missing := {"skip", "route"} - set(file.files):
            raise ValueError(
                f"{path}: expected the arrays skip and route, no {missing}"
            )
        skip, route = file["skip"].astype(bool), file["route"].astype(np.int32)
    if skip.ndim != 3 or route.shape != (*skip.shape, sites):
        raise ValueError(
            f"{path}: expected skip [steps, branches, blocks] and route with {sites} "
            f"sites more, found {skip.shape} and {route.shape}"
        )
    source = np.arange(blocks) * skip.shape[2] // blocks
    skip, route = skip[:, :, source], route[:, :, source]
    slots = tuple(np.flatnonzero(skip.any((0, 1))).tolist()) or False
    used = tuple(Route(r) for r in np.unique(route))
    found = [
        fixed(skip=skip[:, branch], route=route[:, branch])._replace(
            skips=slots, routes=used
        )
        for branch in range(skip.shape[1])
    ]
    return float(skip.mean()), found


class Sampling:
    """A program, ahead-of-time compiled for a model of given shapes."""

    def __init__(self, subject: Subject, spec: Spec, *, steps: int, trace: Path | None):
        self.subject, self.spec, self.steps = subject, spec, steps
        config = subject.config
        model = sampling_model.random_model(
            config, quantized=spec.quantized, abstract=True
        )
        self.weight_bytes = sampling_model.weight_bytes(model)
        self.grid = block_grid(model)
        blocks, sites = self.grid.num_blocks, len(self.grid.sites)
        if trace is None:
            self.policies = policies(spec, blocks, sites, steps)
        else:
            fraction, found = replayed(trace, blocks, sites)
            self.steps = len(found[0].init(self.grid).skip)
            self.policies = {fraction: found}
        text, negative = (sampling_model.text_embeddings(subject, i) for i in (1, 2))
        self.program, graph, params, self.inputs = prepare(
            model,
            sampling_model.scheduler_of(subject),
            text,
            latent_shape=subject.latent_shape,
            negative_text_embeds=negative,
            num_steps=self.steps,
            policy=next(iter(self.policies.values()))[0],
            cache_format=spec.cache_format,
            batched_guidance=spec.batched,
            attention=spec.attention,
            kernels=spec.kernels,
        )
        started = time.perf_counter()
        self.lowered = jax.jit(run_program, static_argnums=(0, 1)).trace(
            self.program, graph, params, self.inputs
        )
        self.trace_seconds = time.perf_counter() - started

    def compile(self) -> None:
        """Lowers and compiles for the default device."""
        started = time.perf_counter()
        self.compiled = self.lowered.lower().compile()
        self.compile_seconds = time.perf_counter() - started

    def build(self) -> None:
        """Makes the weights on the device."""
        model = sampling_model.random_model(
            self.subject.config, quantized=self.spec.quantized
        )
        self.params = nnx.split(model)[1]

    def inputs_for(self, found: list[Policy]) -> Any:
        """The program's inputs with the plans of another policy of the program."""
        states = [
            found[branch % len(found)].init(
                self.grid._replace(branch=branch, num_steps=self.steps)
            )
            for branch in range(self.program.branches)
        ]
        state = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
        return self.inputs._replace(policy_state=jax.device_put(state))

    @property
    def cache_bytes(self) -> int:
        """Bytes of the delta cache."""
        layout = self.program.layout
        if not layout.blocks:
            return 0
        rows = self.inputs.text.shape[1]
        shape = (rows, self.subject.tokens, self.subject.config.dim)
        slots = self.program.branches * layout.num_slots
        cache = jax.eval_shape(
            lambda: delta_cache.init(slots, shape, layout.cache_format)
        )
        return delta_cache.nbytes(cache)

    def memory(self) -> dict[str, int]:
        """What the compiler planned, and what the device saw at most."""
        plan: Any = self.compiled.memory_analysis()
        planned = (
            plan.argument_size_in_bytes
            + plan.output_size_in_bytes
            + plan.temp_size_in_bytes
            - plan.alias_size_in_bytes
        )
        stats = jax.devices()[0].memory_stats() or {}
        peak = stats.get("peak_bytes_in_use", 0)
        return {
            "peak_bytes": peak or planned,
            "planned_bytes": planned,
            "temporary_bytes": plan.temp_size_in_bytes,
            "weight_bytes": self.weight_bytes,
            "cache_bytes": self.cache_bytes,
        }

    def measure(self, repeats: int) -> Iterator[dict[str, Any]]:
        """Times every plan, one record each; after `compile` and `build`."""
        full: float | None = None
        for fraction, found in self.policies.items():
            inputs = self.inputs_for(found)
            times, finite = time_calls(
                lambda i=inputs: self.compiled(self.params, i),
                repeats,
                warm=full is not None,
            )
            seconds = statistics.median(times)
            if fraction == 0:
                full = seconds / self.steps
            # The first step computes every block: it is taken off.
            step = seconds / self.steps
            if fraction and full is not None:
                step = (seconds - full) / (self.steps - 1)
            yield self._record(fraction, step, seconds, times) | {"finite": finite}

    def _record(self, fraction, step, seconds, times) -> dict[str, Any]:
        frames, height, width = self.subject.size
        linear, attention = sampling_model.forward_flops(self.subject)
        executed = 2 * (1 - fraction) * (linear + attention)
        spec = self.spec
        return {
            "model": self.subject.name,
            "frames": frames,
            "height": height,
            "width": width,
            "tokens": self.subject.tokens,
            "blocks": self.grid.num_blocks,
            "program": spec.name,
            "weights": "nvfp4" if spec.quantized else "bf16",
            "routes": "bf16" if spec.routes == "chain" else spec.routes,
            "attention": spec.attention if spec.kernels else "cudnn bf16",
            "cache_format": spec.cache_format if self.cache_bytes else "none",
            "guidance": "batched" if spec.batched else "sequential",
            "skip_fraction": fraction,
            "steps": self.steps,
            "step_ms": step * 1e3,
            "total_ms": seconds * 1e3,
            "spread": (max(times) - min(times)) / seconds,
            "tflops": executed / step / 1e12,
            "trace_seconds": self.trace_seconds,
            "compile_seconds": self.compile_seconds,
            **self.memory(),
        }


def time_calls(
    call: Callable[[], Any], repeats: int, *, warm: bool
) -> tuple[list[float], bool]:
    """Wall times of `repeats` calls, after one that is not counted unless `warm`.

    Returns:
      The times, and whether the latents are finite.
    """
    if not warm:
        jax.block_until_ready(call())
    times, result = [], None
    for _ in range(repeats):
        started = time.perf_counter()
        result = jax.block_until_ready(call())
        times.append(time.perf_counter() - started)
    finite = result is not None and np.isfinite(np.asarray(result.latents)).all()
    return times, bool(finite)


def compile_program(
    subject: Subject, name: str, *, steps: int, repeats: int, trace: Path | None
) -> Callable[[], Iterator[dict[str, Any]]]:
    """Compiles the program of a name.

    Returns:
      What runs it and yields its records.

    Raises:
      ValueError: no program has that name.
    """
    chosen = [spec for spec in SPECS if spec.name == name]
    if name == "trace" and trace is not None:
        chosen = [Spec("trace", "mixed", cache_format="int8")]
    if not chosen:
        raise ValueError(
            f"program: expected one of {[s.name for s in SPECS]}: {name!r}"
        )
    trace = trace if name == "trace" else None
    work = Sampling(subject, chosen[0], steps=steps, trace=trace)
    print(f"{name}: traced in {work.trace_seconds:.0f} s", file=sys.stderr, flush=True)
    work.compile()
    work.build()
    short = None
    if name == BASELINE and steps > 2:
        short = Sampling(subject, chosen[0], steps=2, trace=None)
        short.compile()
        short.params = work.params

    def run() -> Iterator[dict[str, Any]]:
        for record in work.measure(repeats):
            if short is not None:
                record["call_overhead_ms"] = _overhead(short, record)
            yield record

    return run


def _overhead(short: Sampling, record: dict[str, Any]) -> float:
    """What a call costs besides its steps: from two numbers of steps."""
    two = next(short.measure(2))["total_ms"]
    step = (record["total_ms"] - two) / (record["steps"] - 2)
    return math.fsum([two, -2 * step])
