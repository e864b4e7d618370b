"""NVFP4: E2M1 codes, an E4M3 scale per block of 16, a float32 scale per tensor.

    value = E2M1 * block_scale * tensor_scale

Definition used by references, formats and kernels:

    tensor_scale = amax / (6 * 448), rounded to 17 significand bits
    block_scale  = E4M3(block amax * reciprocal(6 * tensor_scale)), at least 2^-9
    code         = E2M1 nearest to x / (block_scale * tensor_scale)

The 17 bits are what makes every machine agree: E2M1 has 2 significand bits (its
rounding boundaries 3), E4M3 has 4, so that all products, in quantization and in
dequantization, in any order, are exact in float32. Codes are found by comparing |x|
with boundary * block_scale * tensor_scale; nothing is divided.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, UInt8

from pallas_kernels.numerics import bits, e2m1

BLOCK = 16
TENSOR_SCALE_BITS = 17


def tensor_scale_of(x: Float[Array, "*batch n k"]) -> Float32[Array, "*batch"]:
    """max|x| / (6 * 448) over the finite values of the last two axes.

    Rounded to 17 significand bits and kept within [2^-100, 2^100].
    """
    amax = bits.finite_amax(x, axis=(-2, -1))
    scale = jnp.clip(
        amax * (1.0 / (e2m1.E2M1_MAX * bits.E4M3_MAX)),
        bits.SMALLEST_SCALE,
        bits.LARGEST_SCALE,
    )
    return bits.round_significand(scale, TENSOR_SCALE_BITS)


def _checked_float32(x: jax.Array) -> jax.Array:
    if x.ndim < 2 or x.shape[-1] % BLOCK:
        raise ValueError(
            f"NVFP4 needs an array [..., N, K] with K a multiple of {BLOCK}, found "
            f"shape {x.shape}"
        )
    return x.astype(jnp.float32)


def _scales(
    x: jax.Array, tensor_scale: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(blocks of x, block scales, their products with tensor_scale, tensor_scale)."""
    if tensor_scale is None:
        tensor_scale = tensor_scale_of(x)
    else:
        tensor_scale = jnp.asarray(tensor_scale, jnp.float32)
        tensor_scale = jnp.broadcast_to(tensor_scale, x.shape[:-2])
    per_row = tensor_scale[..., None, None]
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // BLOCK, BLOCK)
    inverse = bits.reciprocal(e2m1.E2M1_MAX * per_row)
    amax = jnp.max(jnp.abs(blocks), axis=-1)
    scale = jnp.maximum(amax * inverse, bits.E4M3_SMALLEST)
    # Not asked of amax: XLA's maximum on CPUs loses most NaN.
    valid = jnp.all(jnp.isfinite(blocks), axis=-1)
    block_scales = bits.round_e4m3(jnp.where(valid, scale, jnp.nan))
    step = block_scales.astype(jnp.float32) * per_row
    # Without the barrier XLA's CPU code computes a block's scale once per element.
    block_scales, step = jax.lax.optimization_barrier((block_scales, step))
    return blocks, block_scales, step[..., None], tensor_scale


def quantize(
    x: Float[Array, "*batch n k"],
    tensor_scale: Float[Array, "*batch"] | None = None,
) -> tuple[UInt8[Array, "*batch n half_k"], Array, Float32[Array, "*batch"]]:
    """Quantizes along the last axis in blocks of 16, two scale levels.

    Args:
      x: values, K a multiple of 16. A block that holds NaN or Inf gets a NaN scale;
        no other block is affected.
      tensor_scale: a known scale, positive; measured from x if None. One that is
        given is used as it is, and larger blocks saturate.

    Returns:
      codes uint8 [..., N, K/2], block scales float8_e4m3fn [..., N, K/16] and tensor
      scale float32 [...].

    Raises:
      ValueError: fewer than two axes, or K not a multiple of 16.
    """
    x = _checked_float32(x)
    blocks, block_scales, step, tensor_scale = _scales(x, tensor_scale)
    # The two nibbles apart, so that no array of unpacked codes is ever stored.
    pairs = blocks.reshape(*blocks.shape[:-1], BLOCK // 2, 2)
    low = e2m1.encode_scaled(pairs[..., 0], step)
    high = e2m1.encode_scaled(pairs[..., 1], step)
    codes = (low | (high << 4)).reshape(*x.shape[:-1], x.shape[-1] // 2)
    return codes, block_scales, tensor_scale


def dequantize(
    codes: UInt8[Array, "*batch n half_k"],
    block_scales: Array,
    tensor_scale: Float[Array, "*batch"],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Float[Array, "*batch n k"]:
    """E2M1 * block_scale * tensor_scale, computed in float32, rounded once to dtype."""
    values = e2m1.decode(e2m1.unpack(codes))
    step = block_scales.astype(jnp.float32) * tensor_scale[..., None, None]
    blocks = values.reshape(*step.shape, BLOCK) * step[..., None]
    return blocks.reshape(values.shape).astype(dtype)


def fake_quantize(
    x: Float[Array, "*batch n k"],
    tensor_scale: Float[Array, "*batch"] | None = None,
) -> Float[Array, "*batch n k"]:
    """`dequantize(*quantize(x))` in the dtype of x, without making the codes.

    Applying it twice changes nothing, except in blocks more than 10^5 times smaller
    than the tensor's largest value, whose scale is subnormal in E4M3.
    """
    blocks, _, step, _ = _scales(_checked_float32(x), tensor_scale)
    values = e2m1.round_scaled(blocks, step) * step
    return values.reshape(x.shape).astype(x.dtype)
