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
    if jax.default_backend() != "gpu":
        return
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


def is_product_of_xla(case: Case) -> bool:
    """Whether compiling it times candidates on the device (XLA's autotuning)."""
    return case.op == "int8_matmul" and case.implementation.startswith("xla")


@dataclasses.dataclass
class _Prepared:
    """A compiled case and the record that it begins."""

    case: Case
    program: Callable | Exception
    record: dict[str, Any]

    def attempt(self, action: Callable[[Callable], dict[str, float]]) -> None:
        """Adds to the record what an action on the program finds, or its failure."""
        if "failure" in self.record:
            return
        try:
            if isinstance(self.program, Exception):
                raise self.program
            self.record |= action(self.program)
        except (ValueError, NotImplementedError, RuntimeError) as error:
            self.record["failure"] = f"{type(error).__name__}: {str(error)[:300]}"


def _begin(case: Case, program: Callable | Exception) -> _Prepared:
    names = ("op", "implementation", "m", "k", "n")
    record = {name: getattr(case, name) for name in names}
    if case.note:
        record["note"] = case.note
    prepared = _Prepared(case, program, record)
    prepared.attempt(lambda program: _error(case, program))
    return prepared


def run_all(
    cases: Sequence[Case], ready: Callable[[], None] = lambda: None
) -> Iterator[dict[str, Any]]:
    """Times and checks cases: ours, then XLA's products, then the rest.

    All but XLA's products compile side by side and are checked first. The autotuning
    of those uses the device, as timing does, so each is compiled in its turn.

    Args:
        cases: what to run.
        ready: called before the first case is timed; returns when the device is free.

    Yields:
        Flat records; one that could not run names its `failure`.
    """
    products = [case for case in cases if is_product_of_xla(case)]
    others = [case for case in cases if not is_product_of_xla(case)]
    with concurrent.futures.ThreadPoolExecutor(_COMPILE_THREADS) as pool:
        programs = list(pool.map(_compile, others))
    prepared = [_begin(c, p) for c, p in zip(others, programs, strict=True)]
    ready()
    warm_up()
    kernels = ("mosaic_gpu", "triton")
    ours = [p for p in prepared if p.case.implementation in kernels]
    rest = [p for p in prepared if p.case.implementation not in kernels]
    for one in itertools.chain(ours, (_begin(c, _compile(c)) for c in products), rest):
        one.attempt(lambda program, case=one.case: _measure(case, program))
        yield one.record


def _inputs(case: Case) -> list[tuple]:
    make = jax.jit(case.make_inputs)
    return [make(seed) for seed in range(ROTATION)]


def _error(case: Case, program: Callable) -> dict[str, float]:
    """The error against the definition; what is timed later has run once."""
    inputs = _inputs(case)
    results = program(inputs)
    if case.error is None:
        return {}
    return {"relative_error": float(case.error(results[0], inputs[0]))}


def _measure(case: Case, program: Callable) -> dict[str, float]:
    """Median device time of one call; CUPTI's sum over the kernels it launched."""
    if jax.default_backend() != "gpu":
        raise NotImplementedError("timing: expected a GPU, found none")
    median = device_ms(program, _inputs(case)) / ROTATION * 1e3
    found = {"median_us": median}
    if case.flops:
        found["tops"] = case.flops / median / 1e6
    if case.bytes:
        found["tbps"] = case.bytes / median / 1e6
    return found


def device_ms(program: Callable, *inputs: Any) -> float:
    """Median milliseconds of a call: CUPTI's sum over the kernels that it launched.

    Raises:
        RuntimeError: CUPTI saw none.
    """
    _, times = profiler.measure(program, iterations=REPEATS)(*inputs)
    if not isinstance(times, list):
        raise RuntimeError("the profiler saw no kernel")
    return statistics.median(times)


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
