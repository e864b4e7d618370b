"""Where a decoder's time goes: its operations alone, at the sizes of one chunk."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from sixbit_jax.benchmark.harness import REPEATS, device_ms


@dataclasses.dataclass(frozen=True)
class Part:
    """One operation at one size.

    Attributes:
      op: what it is.
      implementation: who computes it.
      shape: of the activation, [frames, height, width, channels].
      function: of the operands.
      operands: made from a key.
      flops, bytes: arithmetic, and what must be read and written at least.
    """

    op: str
    implementation: str
    shape: tuple[int, ...]
    function: Callable
    operands: Callable
    flops: float = 0.0
    bytes: float = 0.0


def normal(*shapes: tuple[int, ...]) -> Callable:
    """Random arrays in bf16, as a function of a key."""

    def make(key: jax.Array) -> tuple[jax.Array, ...]:
        keys = jax.random.split(key, len(shapes))
        return tuple(
            jax.random.normal(k, shape, jnp.bfloat16)
            for k, shape in zip(keys, shapes, strict=True)
        )

    return make


def time_parts(parts: Iterable[Part]) -> Iterator[dict[str, Any]]:
    """A record per operation: `median_us`, and `tflops` or `tbps`."""
    for part in parts:
        record: dict[str, Any] = {
            "op": part.op,
            "implementation": part.implementation,
            "shape": list(part.shape),
        }
        try:
            operands = jax.jit(part.operands)(jax.random.key(0))
            seconds = 1e-3 * _milliseconds(jax.jit(part.function), operands)
        except (ValueError, NotImplementedError, RuntimeError) as error:
            yield record | {"failure": f"{type(error).__name__}: {str(error)[:300]}"}
            continue
        record["median_us"] = 1e6 * seconds
        if part.flops:
            record["tflops"] = part.flops / seconds / 1e12
        if part.bytes:
            record["tbps"] = part.bytes / seconds / 1e12
        yield record


def _milliseconds(call: Callable, operands: tuple) -> float:
    """Of a call, on the device where it has a profiler, by the clock elsewhere."""
    jax.block_until_ready(call(*operands))
    if jax.default_backend() == "gpu":
        return device_ms(call, *operands)
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(call(*operands))
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)
