"""`nvfp4_matmul` on Hopper: both operands expanded to bfloat16, then bf16 tensor cores.

E2M1 * E4M3 has at most six significand bits, so that both operands and every product
are exact; only the float32 sums round. Quality of NVFP4 at the speed of bfloat16.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from pallas_kernels.gemm.epilogue import EpilogueOperands
from pallas_kernels.gemm.linear import linear, refuse
from pallas_kernels.nvfp4_expand.mosaic_gpu import expand_bfloat16


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
    """Expands without the tensor scales, multiplies, applies them in the epilogue.

    Raises:
        NotImplementedError: sizes that the expansion or the GEMM refuses.
    """
    *lead, m, half = x_codes.shape
    shape = (*lead, m, 2 * half)
    refuse(shape, jnp.bfloat16, w_codes.shape[0], operands, out_dtype)
    # One row of x has one tensor scale; all rows are expanded as one matrix.
    x = expand_bfloat16(
        x_codes.reshape(-1, half),
        x_block_scales.reshape(-1, x_block_scales.shape[-1]),
        jnp.ones((), jnp.float32),
    ).reshape(shape)
    w = expand_bfloat16(w_codes, w_block_scales, jnp.ones((), jnp.float32))
    scale = (x_tensor_scale * w_tensor_scale).astype(jnp.float32)
    one_scale = math.prod(lead) == 1
    return linear(
        x,
        w,
        row_scale=(
            None
            if one_scale
            else jnp.broadcast_to(scale[..., None], x_codes.shape[:-1])
        ),
        column_scale=None,
        scalar_scale=scale.reshape(()) if one_scale else None,
        operands=operands,
        out_dtype=out_dtype,
    )
