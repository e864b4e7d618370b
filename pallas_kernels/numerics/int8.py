"""Symmetric INT8 with one float32 scale per row of the last axis.

    scale = amax / 127,   value = round(x * 127 / amax),   x ~ value * scale

Rows are tokens of an activation or output channels of a weight. -128 is not used.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int8

from pallas_kernels.numerics import bits

INT8_MAX = 127.0


def scales_from_amax(
    amax: Float[Array, "..."],
) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
    """(scale, inverse scale) of rows whose largest magnitudes are amax.

    amax is kept within [2^-100, 2^100]. The two are not exact reciprocals of each
    other, each is a fixed function of amax (one rounding), so kernels that compute
    only one of them agree with this.
    """
    amax = jnp.clip(amax.astype(jnp.float32), bits.SMALLEST_SCALE, bits.LARGEST_SCALE)
    return amax * (1.0 / INT8_MAX), bits.reciprocal(amax) * INT8_MAX


def quantize(
    x: Float[Array, "*batch m k"],
) -> tuple[Int8[Array, "*batch m k"], Float32[Array, "*batch m"]]:
    """Quantizes each row of the last axis, to nearest, ties to even.

    Args:
      x: values. A row that holds NaN or Inf gets a NaN scale and zero values; no
        other row is affected.

    Returns:
      values int8 [..., M, K] in -127..127 and scales float32 [..., M].
    """
    x = x.astype(jnp.float32)
    amax = jnp.max(jnp.abs(x), axis=-1)
    # Not asked of amax: XLA's maximum on CPUs loses most NaN.
    valid = jnp.all(jnp.isfinite(x), axis=-1)
    scale, inverse = scales_from_amax(jnp.where(valid, amax, 0.0))
    # Without the barrier XLA may compute a row's inverse once per element.
    inverse = jax.lax.optimization_barrier(inverse)
    scaled = jnp.where(valid[..., None], x * inverse[..., None], 0.0)
    values = jnp.clip(jnp.round(scaled), -INT8_MAX, INT8_MAX).astype(jnp.int8)
    return values, jnp.where(valid, scale, jnp.nan)


def dequantize(
    values: Int8[Array, "*batch m k"],
    scales: Float[Array, "*batch m"],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Float[Array, "*batch m k"]:
    """value * scale, computed in float32, rounded once to dtype."""
    return (values.astype(jnp.float32) * scales[..., None]).astype(dtype)


def fake_quantize(x: Float[Array, "*batch m k"]) -> Float[Array, "*batch m k"]:
    """`dequantize(*quantize(x))` in the dtype of x."""
    return dequantize(*quantize(x), dtype=x.dtype)
