"""Runs Triton kernels on the CPU: Triton's interpreter over NumPy buffers."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pallas_kernels.triton_backend import calls

_NAMES = {
    np.dtype(ml_dtypes.bfloat16): "bfloat16",
    np.dtype(ml_dtypes.float8_e4m3fn): "float8_e4m3fn",
}


class _Buffer:
    """What the interpreter asks of a torch tensor, around a NumPy array."""

    def __init__(self, array: np.ndarray):
        self.array = np.ascontiguousarray(array)
        self.dtype = _NAMES.get(array.dtype, str(array.dtype))

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> _Buffer:
        return self

    def cpu(self) -> _Buffer:
        return self

    def new_empty(self, *_, **__) -> _Buffer:
        return _Buffer(np.empty(0, self.array.dtype))

    def set_(self, storage: _Buffer, *_) -> None:
        self.array, self.dtype = storage.array, storage.dtype

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return ()

    def copy_(self, _) -> None:
        pass


def _call(kernel, arrays, outputs, *, grid, launch, fused_multiply_add=False, **rest):
    del launch, fused_multiply_add
    module, name = kernel.split(":")
    function = getattr(
        importlib.import_module(f"pallas_kernels.{module}.triton_kernel"), name
    )
    # What is not written must not look like an answer.
    empty = [np.full(o.shape, 85, np.uint8).astype(o.dtype) for o in outputs]
    buffers = [_Buffer(np.array(a)) for a in (*arrays, *empty)]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        function[grid](*buffers, **rest)
    return [jnp.asarray(b.array) for b in buffers[len(arrays) :]]


def _exact_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    """The interpreter multiplies the bits of bfloat16 as whole numbers."""
    from triton.runtime import interpreter

    language = interpreter.tl
    operands = []
    for operand in (a, b):
        data = operand.data
        if operand.dtype.scalar == language.bfloat16:
            data = data.view(ml_dtypes.bfloat16)
        whole = np.issubdtype(data.dtype, np.integer)
        operands.append(data.astype(np.int32 if whole else np.float32))
    product = np.matmul(*operands).astype(d.data.dtype)
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)


def _rounding(original):
    """The interpreter cuts float32 to bfloat16, a GPU rounds."""

    def convert(data, input_dtype, output_dtype, rounding_mode):
        if (input_dtype.name, output_dtype.name) == ("fp32", "bf16"):
            return data.astype(ml_dtypes.bfloat16).view(np.uint16)
        return original(data, input_dtype, output_dtype, rounding_mode)

    return convert


def _patched_tensors(original):
    """Triton 3.6 reads a scalar in a way that NumPy no longer allows."""

    def patch(tensor, scope):
        original(tensor, scope)
        value = lambda self: int(self.handle.data.squeeze())  # noqa: E731
        scope.set_attr(tensor, "__index__", value)

    return patch


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Inside, `implementation="triton"` runs eagerly in the interpreter."""
    pytest.importorskip("triton")
    from triton.runtime import interpreter

    patch = pytest.MonkeyPatch()
    builder = type(interpreter.interpreter_builder)
    try:
        patch.setattr(calls, "call", _call)
        patch.setattr(builder, "create_dot", _exact_dot)
        rounding = _rounding(interpreter._convert_float)
        patch.setattr(interpreter, "_convert_float", rounding)
        original = interpreter._patch_lang_tensor
        patch.setattr(interpreter, "_patch_lang_tensor", _patched_tensors(original))
        with jax.disable_jit():
            yield
    finally:
        patch.undo()
