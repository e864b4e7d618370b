"""PyTorch's products at the same shapes, in the same run, where PyTorch is importable.

Kept out of JAX's harness: each framework times its own launches, with device events
over a captured loop of rotating inputs.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pallas_kernels.shapes import Linear
from sixbit_jax.benchmark.harness import REPEATS, ROTATION


def _torch() -> Any:
    """PyTorch, which is no dependency of this project."""
    return importlib.import_module("torch")


def available() -> bool:
    """Whether PyTorch is there and sees a GPU."""
    try:
        return bool(_torch().cuda.is_available())
    except ImportError:
        return False


def products(linear: Linear) -> dict[str, tuple[Callable, Callable]]:
    """Per peer: the function of one input set, and what makes an input set."""
    torch = _torch()
    m, k, n = linear.m, linear.k, linear.n

    def integers() -> tuple:
        shape = {"low": -127, "high": 128, "dtype": torch.int8, "device": "cuda"}
        return torch.randint(size=(m, k), **shape), torch.randint(size=(n, k), **shape)

    def floats(dtype) -> tuple:
        made = (torch.randn(size, device="cuda") for size in ((m, k), (n, k)))
        return tuple(x.to(dtype) for x in made)

    one = torch.ones((), device="cuda")

    def scaled(x, w):
        return torch._scaled_mm(
            x, w.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16
        )

    return {
        "torch _int_mm": (lambda x, w: torch._int_mm(x, w.t()), integers),
        "torch bf16": (lambda x, w: x @ w.t(), lambda: floats(torch.bfloat16)),
        "torch fp8 _scaled_mm": (scaled, lambda: floats(torch.float8_e4m3fn)),
    }


def _median_us(function: Callable, sets: Sequence[tuple]) -> float:
    torch = _torch()
    for one in sets:
        function(*one)
    torch.cuda.synchronize()
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for one in sets:
            function(*one)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(sets))
    return statistics.median(times)


def run(linears: Sequence[Linear]) -> Iterator[dict[str, Any]]:
    """Times every peer at every shape.

    Yields:
        Records as `harness.run_all` does, with `op` "int8_matmul"; the int32 output of
        `_int_mm` has neither scales nor bias yet.
    """
    torch = _torch()
    for linear in linears:
        for name, (function, make) in products(linear).items():
            record: dict[str, Any] = {
                "op": "int8_matmul",
                "implementation": name,
                "m": linear.m,
                "k": linear.k,
                "n": linear.n,
                "note": "product",
            }
            try:
                median = _median_us(function, [make() for _ in range(ROTATION)])
            except (RuntimeError, NotImplementedError) as error:
                record["failure"] = f"{type(error).__name__}: {str(error)[:300]}"
            else:
                flops = 2.0 * linear.m * linear.k * linear.n
                record |= {"median_us": median, "tops": flops / median / 1e6}
            torch.cuda.empty_cache()
            yield record
