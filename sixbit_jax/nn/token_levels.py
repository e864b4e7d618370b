"""Activations on uniform grids, and DVD-Quant's live channel scales in front of them.

    levels = clamp(round(x / s) + z, 0, 2^b - 1) - z       x ~ s * levels

with s and z of each token. The zero point is taken off before the product: levels of
up to 7 bits then lie within -127 .. 127 and are what an INT8 product multiplies,
exactly and without a correction by the weight's row sums. 8-bit levels would not fit;
8 bits are symmetric, as on the INT8 route.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int8

from pallas_kernels.numerics import bits as float_bits
from pallas_kernels.numerics import int8

_SMALLEST, _LARGEST = float_bits.SMALLEST_SCALE, float_bits.LARGEST_SCALE


def token_levels(
    x: Float[Array, "*batch k"], bits: int
) -> tuple[Int8[Array, "*batch k"], Float32[Array, "*batch"]]:
    """Quantizes each token over its own range, live.

    Args:
      x: [..., K].
      bits: 4 to 7: asymmetric, zero inside the grid (Q-VDiT section 3.1, ViDiT-Q);
        8: symmetric.

    Returns:
      Levels [..., K] and scales [...]. A token with NaN or Inf gets a NaN scale and
      zero levels; no other token is affected.

    Raises:
      ValueError: other bits.
    """
    if bits == 8:
        return int8.quantize(x)
    if not 4 <= bits <= 7:
        raise ValueError(f"token levels: expected 4 to 8 bits, found {bits}")
    x = x.astype(jnp.float32)
    low, high = jnp.minimum(x.min(-1), 0.0), jnp.maximum(x.max(-1), 0.0)
    top = 2**bits - 1
    valid = jnp.isfinite(low) & jnp.isfinite(high)
    span = jnp.clip(jnp.where(valid, high - low, 0.0), _SMALLEST, _LARGEST)
    scale = span / top
    zero = jnp.round(jnp.where(valid, -low, 0.0) / scale)
    # Without the barrier XLA may divide once per element more.
    inverse = jax.lax.optimization_barrier(1.0 / scale)
    rounded = jnp.round(jnp.where(valid[..., None], x, 0.0) * inverse[..., None])
    levels = jnp.clip(rounded, -zero[..., None], top - zero[..., None])
    return levels.astype(jnp.int8), jnp.where(valid, scale, jnp.nan)


def channel_scales(
    x: Float[Array, "batch tokens k"], block: int = 1
) -> Float32[Array, "batch blocks"]:
    """max |x| over the tokens and over each block of channels, per batch entry.

    Per batch entry, so that a video does not depend on those sampled beside it.

    Raises:
      ValueError: the block does not divide K.
    """
    *lead, _, k = x.shape
    if block < 1 or k % block:
        raise ValueError(
            f"channel scales: expected a block that divides the {k} channels, found "
            f"{block}"
        )
    amax = jnp.abs(x.astype(jnp.float32)).max(-2)
    return jnp.clip(amax.reshape(*lead, -1, block).max(-1), _SMALLEST, _LARGEST)


def block_scaled_product(
    levels: Int8[Array, "batch tokens k"],
    block_scales: Float32[Array, "batch blocks"],
    values: Int8[Array, "n k"],
) -> Float32[Array, "batch tokens n"]:
    """sum over blocks of scale * (levels @ values^T), each product exact int32.

    One integer GEMM per block of channels, added in float32.
    """
    blocks = block_scales.shape[-1]
    x = jnp.moveaxis(levels.reshape(*levels.shape[:-1], blocks, -1), -2, 0)
    w = jnp.moveaxis(values.reshape(values.shape[0], blocks, -1), 1, 0)

    # XLA multiplies integers slowly on CPUs; sums below 2^24 are exact in float32.
    exact = 127 * 127 * x.shape[-1] < 1 << 24
    as_floats = exact and jax.default_backend() == "cpu"
    if as_floats:
        x, w = x.astype(jnp.float32), w.astype(jnp.float32)

    def add(total: Array, operands: tuple[Array, Array, Array]) -> tuple[Array, None]:
        x, w, scale = operands
        sums = jax.lax.dot_general(
            x,
            w,
            (((2,), (1,)), ((), ())),
            preferred_element_type=jnp.float32 if as_floats else jnp.int32,
        )
        return total + sums.astype(jnp.float32) * scale[:, None, None], None

    start = jnp.zeros((*levels.shape[:-1], values.shape[0]), jnp.float32)
    # Unrolled where it is short: a loop inside a route would keep XLA from capturing
    # it into a CUDA graph.
    scales = jnp.moveaxis(block_scales, -1, 0)
    total, _ = jax.lax.scan(add, start, (x, w, scales), unroll=min(blocks, 16))
    return total
