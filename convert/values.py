"""What happens to one tensor: checked for NaN and Inf, cast or quantized."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert.errors import ConversionError
from convert.nvfp4_dialects import PackedInfo
from pallas_kernels.numerics import bits
from pallas_kernels.numerics.nvfp4 import TENSOR_SCALE_BITS
from sixbit_jax.checkpoint import ParameterSpec
from sixbit_jax.formats import NVFP4Array
from sixbit_jax.quantizers.storage import WeightRecipe

# JAX has no float64 by default and computes with no float8: both are kept exactly or,
# for float64, rounded once.
_KEPT = {
    "float64": "float32",
    "float8_e4m3fn": "bfloat16",
    "float8_e5m2": "bfloat16",
}
# Enough to keep the temporary masks of the NaN check small.
_CHUNK = 1 << 24
_LARGEST_SAFE = float(np.finfo(np.float32).max) / (2 * 6 * 448)
_LARGEST_USUAL = 1e30


def kept_dtype(*dtypes: np.dtype) -> str:
    """The dtype that `--dtype keep` stores: the widest of the source's, supported."""
    names = {_KEPT.get(dtype.name, dtype.name) for dtype in dtypes}
    first, *rest = sorted(names)
    result = jnp.dtype(first)
    for name in rest:
        result = jnp.promote_types(result, name)
    return jnp.dtype(result).name


def check_finite(array: np.ndarray, where: str) -> None:
    """Refuses NaN and Inf.

    Raises:
      ConversionError: names the tensor, how many values there are and the first place.
    """
    flat = array.reshape(-1)
    bad, first = 0, -1
    for start in range(0, flat.size, _CHUNK):
        mask = ~_finite(flat[start : start + _CHUNK])
        count = int(np.count_nonzero(mask))
        if count and first < 0:
            first = start + int(np.argmax(mask))
        bad += count
    if bad:
        index = tuple(int(i) for i in np.unravel_index(first, array.shape))
        raise ConversionError(
            f"{where}: expected finite values, found {bad:,} NaN or Inf of "
            f"{array.size:,}, the first at {list(index)}"
        )


def _finite(part: np.ndarray) -> np.ndarray:
    if part.dtype == jnp.bfloat16:
        # isfinite of ml_dtypes goes value by value; the exponent bits do not.
        return (part.view(np.uint16) & 0x7F80) != 0x7F80
    return np.isfinite(part)


def cast(array: np.ndarray, dtype: str, where: str) -> np.ndarray:
    """Casts, and refuses values that overflow the new dtype.

    Raises:
      ConversionError: if a finite value becomes Inf.
    """
    target = jnp.dtype(dtype)
    if array.dtype == target:
        return array
    with np.errstate(over="ignore"):
        result = array.astype(target)
    if target.itemsize < array.dtype.itemsize or target == jnp.float16:
        check_finite(result, f"{where} after the cast from {array.dtype} to {dtype}")
    return result


def store(
    array: np.ndarray, spec: ParameterSpec, where: str, recipe: WeightRecipe | None
) -> Any:
    """The stored form of a tensor: cast, or quantized.

    Args:
      array: the tensor, floating point, in our layout.
      spec: how it is to be stored.
      where: the tensor's name, for errors.
      recipe: what compresses it, where it is to be compressed.

    Raises:
      ConversionError: for NaN, Inf and overflow.
    """
    check_finite(array, where)
    if recipe is None or not spec.compressed:
        return cast(array, spec.dtype, where)
    # float64 has to be narrowed before JAX sees it; nothing else changes value here.
    array = cast(array, "float32", where)
    compressed = recipe.compress(array, rotation=spec.rotation)
    stored = jax.tree.map(np.asarray, compressed)
    _check_stored(stored, array, where, spec.dtype)
    return stored


def keep_packed(info: PackedInfo, where: str) -> NVFP4Array:
    """A weight that is NVFP4 already, with its own codes and block scales.

    The tensor scale is rounded to the 17 bits of ours (4e-6), which keep all products
    exact in float32.

    Raises:
      ConversionError: if it stands for values that float32 does not hold.
    """
    packed = info.read_packed()
    scale = np.asarray(
        bits.round_significand(jnp.float32(packed.tensor_scale), TENSOR_SCALE_BITS)
    )
    arrays = {
        "codes": packed.codes,
        "block_scales": packed.block_scales,
        "tensor_scale": scale,
    }
    # Below, no product overflows: the largest is 6 x 448 x scale.
    if not scale < _LARGEST_SAFE:
        check_finite(replace(packed, tensor_scale=np.float32(scale)).values(), where)
    return NVFP4Array.from_arrays("nvfp4", arrays, 0)


def _check_stored(stored: Any, array: np.ndarray, where: str, name: str) -> None:
    """Refuses a compressed weight that does not stand for what was compressed.

    Raises:
      ConversionError: if a scale is NaN or Inf, or large values were lost.
    """
    for leaf in jax.tree.leaves(stored):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            check_finite(np.asarray(leaf), f"{where}: the scales of {name}")
    largest = max(float(array.max(initial=0)), -float(array.min(initial=0)))
    # Only near the end of float32 can products overflow while scales do not.
    if largest < _LARGEST_USUAL:
        return
    found = np.asarray(stored.dequantize(jnp.float32))
    check_finite(found, f"{where}: the values of {name}")
    # Rotation keeps the norm, and changes the largest value.
    before, after = (
        float(np.linalg.norm(part.astype(np.float64) / largest))
        for part in (array, found)
    )
    if not 0.5 * before <= after <= 2 * before:
        raise ConversionError(
            f"{where}: expected values within the range of {name}, found values up to "
            f"{largest:.3g}, of which {after / before:.2g} would be left"
        )
