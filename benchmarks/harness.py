"""Timing of device functions, one record per case."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental.mosaic.gpu import profiler

# Input sets that a timed function walks through, so that no call finds its operands
# in L2 because the call before it left them there.
ROTATION = 3
REPEATS = 15


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
    make_inputs: Callable[[int], tuple]
    flops: float = 0.0
    bytes: float = 0.0
    error: Callable | None = None
    note: str = ""


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


def median_us(function: Callable, inputs: Sequence[tuple]) -> float:
    """Median device time of one call, over rotating inputs, in microseconds.

    Device time is the sum of the call's kernels as CUPTI reports them.
    """

    def walk(sets):
        return [function(*one) for one in sets]

    _, measured = profiler.measure(jax.jit(walk), iterations=REPEATS)(inputs)
    if measured is None:
        raise RuntimeError("no kernel was launched")
    return statistics.median(total / len(inputs) * 1e3 for total in measured)


def run(case: Case) -> dict:
    """Times and checks one case; the record names its failure if it fails."""
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
        inputs = [case.make_inputs(seed) for seed in range(ROTATION)]
        if case.error is not None:
            result = jax.jit(case.function)(*inputs[0])
            record["relative_error"] = float(case.error(result, inputs[0]))
            del result
        record["median_us"] = median_us(case.function, inputs)
    except (ValueError, NotImplementedError, RuntimeError) as error:
        record["failure"] = f"{type(error).__name__}: {str(error)[:300]}"
        return record
    if case.flops:
        record["tops"] = case.flops / record["median_us"] / 1e6
    if case.bytes:
        record["tbps"] = case.bytes / record["median_us"] / 1e6
    return record


def show(record: dict) -> str:
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
        f"{record['op']:14} {shape:18} {record['implementation']:22} "
        f"{record.get('note', ''):12} {outcome}{shown}"
    )
