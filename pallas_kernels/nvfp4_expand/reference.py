"""The definition of `nvfp4_expand` in plain jax.numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.numerics import bits, int8, nvfp4


def nvfp4_expand(
    codes: jax.Array,
    block_scales: jax.Array,
    tensor_scale: jax.Array,
    *,
    to: str,
    scales: jax.Array | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Dequantizes in float32 (exact) and rounds once to the target."""
    if to == "bfloat16":
        return nvfp4.dequantize(codes, block_scales, tensor_scale, jnp.bfloat16)
    values = nvfp4.dequantize(codes, block_scales, tensor_scale, jnp.float32)
    if scales is None:
        return int8.quantize(values)
    inverse = bits.reciprocal(scales.astype(jnp.float32))[..., None]
    rounded = jnp.round(values * jax.lax.optimization_barrier(inverse))
    rounded = jnp.clip(rounded, -int8.INT8_MAX, int8.INT8_MAX)
    return jnp.where(jnp.isnan(rounded), 0, rounded).astype(jnp.int8), scales
