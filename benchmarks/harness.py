"""Timing of device functions, one record per case."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.mosaic.gpu import profiler

# Input sets that a timed program walks through, so that no call finds its operands in
# L2 because the call before it left them there.
ROTATION = 3
REPEATS = 7
_COMPILE_THREADS = 8


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation at one shape with one implementation.

    Attributes:
        op: name of the operation.
        implementation: who computes it.
        m, k, n: rows, inner size and columns; 0 where there is none.
        function: takes one input set.
        make_inputs: builds an input set from a seed.
        flops: arithmetic of one call, 0 if it is measured in bytes.
        bytes: bytes that one call must read and write.
        error: maps (result, inputs) to the error against the definition.
        note: epilogue, dtype or whatever else distinguishes the case.
    """

    op: str
    implementation: str
    m: int
    k: int
    n: int
    function: Callable
    make_inputs: Callable[[Any], tuple]
    flops: float = 0.0
    bytes: float = 0.0
    error: Callable | None = None
    note: str = ""

    def walk(self, sets: Sequence[tuple]) -> list:
        """The function on every input set, one after the other, as one program."""
        return [self.function(*one) for one in sets]


def warm_up(seconds: float = 1.0) -> None:
    """Brings the chip to the clock and temperature of steady work."""
    x = jax.random.normal(jax.random.key(0), (8192, 8192), jnp.bfloat16)
    multiply = jax.jit(lambda x: (x @ x.T).astype(jnp.bfloat16))
    multiply(x).block_until_ready()
    end = time.time() + seconds
    while time.time() < end:
        for _ in range(50):
            y = multiply(x)
        y.block_until_ready()


def _compile(case: Case) -> Callable | Exception:
    one = jax.eval_shape(lambda: case.make_inputs(0))
    try:
        return jax.jit(case.walk).lower([one] * ROTATION).compile()
    except (ValueError, NotImplementedError, RuntimeError) as error:
        return error


def run_all(cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Times and checks one case after another.

    Our kernels compile side by side and come first; the autotuning of XLA's products
    takes longer than all the rest.

    Yields:
        Flat records; one that could not run names its `failure`.
    """
    ours = [case for case in cases if case.implementation == "mosaic_gpu"]
    others = [case for case in cases if case.implementation != "mosaic_gpu"]
    with concurrent.futures.ThreadPoolExecutor(_COMPILE_THREADS) as pool:
        programs = list(pool.map(_compile, ours))
    warm_up()
    for case, program in itertools.chain(
        zip(ours, programs, strict=True), ((case, _compile(case)) for case in others)
    ):
        record = {
            "op": case.op,
            "implementation": case.implementation,
            "m": case.m,
            "k": case.k,
            "n": case.n,
        }
        if case.note:
            record["note"] = case.note
        try:
            if isinstance(program, Exception):
                raise program
            record |= _measure(case, program)
        except (ValueError, NotImplementedError, RuntimeError) as error:
            record["failure"] = f"{type(error).__name__}: {str(error)[:300]}"
        yield record


def _measure(case: Case, program: Callable) -> dict[str, float]:
    """Median device time of one call; CUPTI's sum over the kernels it launched."""
    inputs = [jax.jit(case.make_inputs)(seed) for seed in range(ROTATION)]
    found: dict[str, float] = {}
    if case.error is not None:
        found["relative_error"] = float(case.error(program(inputs)[0], inputs[0]))
    _, times = profiler.measure(program, iterations=REPEATS)(inputs)
    if not isinstance(times, list):
        raise RuntimeError("the profiler saw no kernel")
    median = statistics.median(times) / ROTATION * 1e3
    found["median_us"] = median
    if case.flops:
        found["tops"] = case.flops / median / 1e6
    if case.bytes:
        found["tbps"] = case.bytes / median / 1e6
    return found


def show(record: dict[str, Any]) -> str:
    """One line for the terminal."""
    rate = ""
    if "tops" in record:
        rate = f"{record['tops']:7.0f} TOPS"
    elif "tbps" in record:
        rate = f"{record['tbps']:7.2f} TB/s"
    outcome = record.get("failure") or f"{record['median_us']:9.1f} us {rate}"
    error = record.get("relative_error")
    shown = "" if error is None else f"  error {error:.1e}"
    shape = f"{record['m']}x{record['k']}x{record['n']}"
    return (
        f"{record['op']:14} {shape:18} {record['implementation']:14} "
        f"{record.get('note', ''):9} {outcome}{shown}"
    )
