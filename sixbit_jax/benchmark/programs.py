"""Compiles the programs of `sampling_plans`, each once, and times every plan."""

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from sixbit_jax.benchmark import subject as sampling_model
from sixbit_jax.benchmark.plans import (
    BASELINE,
    INT8_TRACE,
    SPECS,
    Spec,
    policies,
    replayed,
)
from sixbit_jax.benchmark.subject import Subject
from sixbit_jax.calibration import find_sparse_tau
from sixbit_jax.policies import Policy, attention_density
from sixbit_jax.routes import Route
from sixbit_jax.sampling import delta_cache
from sixbit_jax.sampling.api import block_grid, prepare
from sixbit_jax.sampling.loop import run_program
from sixbit_jax.sampling.options import Execution

# Of the share of keys.
_DENSITY_TOLERANCE = 0.01


class Sampling:
    """A program, ahead-of-time compiled for a model of given shapes."""

    def __init__(self, subject: Subject, spec: Spec, *, steps: int, trace: Path | None):
        self.subject, self.spec, self.steps = subject, spec, steps
        config = subject.config
        model = sampling_model.random_model(
            config,
            quantized=spec.quantized,
            abstract=True,
            lora_rank=spec.lora_rank,
        )
        self.weight_bytes = sampling_model.weight_bytes(model)
        self.grid = block_grid(model)
        blocks, sites = self.grid.num_blocks, len(self.grid.sites)
        if trace is None:
            self.policies = policies(spec, blocks, sites, steps)
        else:
            table = None if spec.routes == "mixed" else Route[spec.routes.upper()]
            fraction, found = replayed(trace, blocks, sites, table)
            self.steps = len(found[0].init(self.grid).skip)
            self.policies = {fraction: found}
        self.program, graph, params, self.inputs = prepare(
            model,
            sampling_model.scheduler_of(subject),
            sampling_model.prompts(subject),
            latent_shape=subject.latent_shape,
            num_steps=self.steps,
            policy=next(iter(self.policies.values()))[0],
            execution=Execution(
                cache_format=spec.cache_format,
                batched_guidance=spec.batched,
                attention=None if spec.attention == "half" else spec.attention,
                kernels=spec.kernels,
            ),
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
            self.subject.config,
            quantized=self.spec.quantized,
            lora_rank=self.spec.lora_rank,
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

    def _guidance(self) -> str:
        if not self.program.guided:
            return "none"
        return "batched" if self.spec.batched else "sequential"

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
        for policies_of_fraction, facts in self._by_density():
            full: float | None = None
            for fraction, found in policies_of_fraction.items():
                inputs = self.inputs_for(found)
                times, result = time_calls(
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
                trace = result.trace
                density = attention_density(trace.attention_density, trace.skip)
                record = self._record(fraction, step, seconds, times, density)
                finite = bool(np.isfinite(np.asarray(result.latents)).all())
                yield record | facts | {"finite": finite}

    def _by_density(
        self,
    ) -> Iterator[tuple[dict[float, list[Policy]], dict[str, float]]]:
        """The policies of each skip fraction, and what records say of them.

        For sparse attention once per share of the keys, with the threshold that gives
        it where nothing is skipped.
        """
        if not self.spec.densities:
            yield self.policies, {}
            return
        blocks, sites = self.grid.num_blocks, len(self.grid.sites)

        def policies_of(tau: float) -> dict[float, list[Policy]]:
            return policies(self.spec, blocks, sites, self.steps, tau=tau)

        def record(tau: float) -> list[Any]:
            inputs = self.inputs_for(next(iter(policies_of(tau).values())))
            return [self.compiled(self.params, inputs).trace]

        for share in self.spec.densities:
            fit = find_sparse_tau(record, share, tolerance=_DENSITY_TOLERANCE)
            facts = {"target_density": share, "sparse_tau": fit.tau}
            yield policies_of(fit.tau), facts

    def _record(self, fraction, step, seconds, times, density) -> dict[str, Any]:
        frames, height, width = self.subject.size
        linear, attention = sampling_model.forward_flops(self.subject)
        forwards = 2 if self.program.guided else 1
        executed = forwards * (1 - fraction) * (linear + density * attention)
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
            "guidance": self._guidance(),
            "skip_fraction": fraction,
            "density": density,
            "lora_rank": spec.lora_rank,
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
) -> tuple[list[float], Any]:
    """Wall times of `repeats` calls, after one that is not counted unless `warm`.

    Returns:
      The times, and what the last call returned.
    """
    if not warm:
        jax.block_until_ready(call())
    times, result = [], None
    for _ in range(repeats):
        started = time.perf_counter()
        result = jax.block_until_ready(call())
        times.append(time.perf_counter() - started)
    return times, result


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
        chosen = [Spec("trace", "mixed")]
    if name == INT8_TRACE and trace is not None:
        chosen = [Spec(INT8_TRACE, "int8")]
    if not chosen:
        raise ValueError(
            f"program: expected one of {[s.name for s in SPECS]}: {name!r}"
        )
    trace = trace if name in ("trace", INT8_TRACE) else None
    work = Sampling(subject, chosen[0], steps=steps, trace=trace)
    print(f"{name}: traced in {work.trace_seconds:.0f} s", file=sys.stderr, flush=True)
    work.compile()
    short = None
    if name == BASELINE and steps > 2:
        short = Sampling(subject, chosen[0], steps=2, trace=None)
        short.compile()

    def run() -> Iterator[dict[str, Any]]:
        # Not before its turn: the weights of all programs may be more than memory.
        work.build()
        if short is not None:
            short.params = work.params
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
