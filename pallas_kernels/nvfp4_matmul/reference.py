"""The definition of `nvfp4_matmul` in plain jax.numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.gemm import epilogue
from pallas_kernels.gemm.epilogue import EpilogueOperands
from pallas_kernels.numerics import nvfp4


def nvfp4_matmul(
    x_codes: jax.Array,
    x_block_scales: jax.Array,
    x_tensor_scale: jax.Array,
    w_codes: jax.Array,
    w_block_scales: jax.Array,
    w_tensor_scale: jax.Array,
    operands: EpilogueOperands,
    out_dtype,
) -> jax.Array:
    """Products of E2M1 * block scale (exact in float32), float32 sums, then scales."""
    # The tensor scales stay out of the products: E2M1 * E4M3 has at most six
    # significand bits, so that each product is exact in float32 and in bfloat16 MMA.
    # bfloat16 holds both sides exactly, and a GPU multiplies it ten times as fast as
    # full float32; CPUs are faster in float32.
    dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
    x = _unscaled(x_codes, x_block_scales).astype(dtype)
    w = _unscaled(w_codes, w_block_scales).astype(dtype)
    sums = lax.dot_general(
        x,
        w,
        (((x.ndim - 1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    scale = (x_tensor_scale * w_tensor_scale).astype(jnp.float32)
    return epilogue.apply(sums * scale[..., None, None], operands, out_dtype)


def _unscaled(codes: jax.Array, block_scales: jax.Array) -> jax.Array:
    return nvfp4.dequantize(codes, block_scales, jnp.ones(codes.shape[:-2]))
