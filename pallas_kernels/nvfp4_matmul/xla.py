"""`nvfp4_matmul` on GPUs that multiply no FP4 and run no Hopper kernel.

As on Hopper, both operands are expanded to bfloat16, exactly, and multiplied there;
XLA's product, with the epilogue fused.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.gemm import epilogue
from pallas_kernels.gemm.epilogue import EpilogueOperands
from pallas_kernels.nvfp4_expand.api import nvfp4_expand


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
    """Expands without the tensor scales, multiplies, applies them behind the sums."""
    one = jnp.ones((), jnp.float32)
    half, blocks = x_codes.shape[-1], x_block_scales.shape[-1]
    x, w = (
        jnp.asarray(
            nvfp4_expand(
                codes.reshape(-1, half), scales.reshape(-1, blocks), one, to="bfloat16"
            )
        )
        for codes, scales in ((x_codes, x_block_scales), (w_codes, w_block_scales))
    )
    sums = lax.dot_general(
        x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    ).reshape(*x_codes.shape[:-1], -1)
    scale = (x_tensor_scale * w_tensor_scale).astype(jnp.float32)
    return epilogue.apply(sums * scale[..., None, None], operands, out_dtype)
