"""Calls a Triton kernel from JAX, whichever jax-triton is installed."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from pallas_kernels import dispatch

INSTALL = "pip install 'sixbit-jax[triton]'"
# The oldest tensor cores that the kernels are written for: asynchronous copies to
# shared memory, bfloat16 and INT8 products.
_OLDEST = (8, 0)
# What is compiled for where no GPU can be asked.
_FALLBACK = (8, 0)


class Launch(NamedTuple):
    """How a kernel is launched: warps of a program, stages of its pipelined loops."""

    warps: int = 4
    stages: int = 2


def call(
    kernel: str,
    arrays: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    *,
    grid: tuple[int, ...],
    launch: Launch,
    fused_multiply_add: bool = False,
    **constants: Any,
) -> list[jax.Array]:
    """Runs a kernel of this package.

    Args:
        kernel: module below `pallas_kernels` and function, "int8_matmul:int8_matmul".
        arrays: what it reads, in the order of its parameters.
        outputs: what it writes, behind them.
        grid: programs along up to three axes.
        launch: warps and stages.
        fused_multiply_add: whether the compiler may contract a product and a sum into
            one rounding; off where codes must equal those of the definition.
        **constants: its `tl.constexpr` parameters.

    Returns:
        The outputs.

    Raises:
        NotImplementedError: Triton or jax-triton is not installed.
    """
    triton_call = _triton_call()
    module, name = kernel.split(":")
    function = getattr(_kernels(module), name)
    if "out_type" in _parameters(triton_call):
        options: dict[str, Any] = {
            "out_type": list(outputs),
            "backend_options": {"enable_fp_fusion": fused_multiply_add},
        }
    else:  # jax-triton before 0.4
        options = {
            "out_shape": list(outputs),
            "enable_fp_fusion": fused_multiply_add,
        }
    major, minor = dispatch.compute_capability() or _FALLBACK
    return triton_call(
        *arrays,
        kernel=function,
        grid=grid,
        name=name,
        num_warps=launch.warps,
        num_stages=launch.stages,
        compute_capability=10 * major + minor,
        **options,
        **constants,
    )


def needs_triton() -> None:
    """Raises NotImplementedError unless there is a GPU to run on, and Triton."""
    found = dispatch.compute_capability()
    if found is None or found < _OLDEST:
        device = "no NVIDIA GPU" if found is None else f"compute capability {found}"
        raise NotImplementedError(
            f"Triton kernels need compute capability {_OLDEST} or later; the default "
            f"device has {device}"
        )
    _triton_call()


@functools.cache
def _parameters(function: Callable) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _triton_call() -> Callable:
    try:
        importlib.import_module("triton")
        return importlib.import_module("jax_triton").triton_call
    except (ImportError, AttributeError) as error:
        raise dispatch.MissingPackageError(
            "Triton kernels need the optional packages jax-triton and triton "
            f"({INSTALL}), found {error}",
            install=INSTALL,
        ) from error


def _kernels(module: str) -> Any:
    return importlib.import_module(f"pallas_kernels.{module}.triton_kernel")
