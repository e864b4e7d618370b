"""`nvfp4_matmul` on Blackwell: XLA's block-scaled dot; XLA fuses the epilogue."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.gemm import epilogue
from pallas_kernels.gemm.epilogue import EpilogueOperands

_K_MULTIPLE = 64


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
    """Reinterprets the codes as float4_e2m1fn and calls `jax.nn.scaled_matmul`.

    Raises:
        NotImplementedError: K not a multiple of 64.
    """
    *lead, m, half = x_codes.shape
    if 2 * half % _K_MULTIPLE:
        raise NotImplementedError(
            f"scaled_matmul: K must be a multiple of {_K_MULTIPLE}, found {2 * half}"
        )
    rows = (-1, x_codes.shape[-1])
    sums = jax.nn.scaled_matmul(
        _float4(x_codes.reshape(1, *_flat(x_codes.shape, rows))),
        _float4(w_codes[None]),
        x_block_scales.reshape(1, -1, x_block_scales.shape[-1]),
        w_block_scales[None],
        preferred_element_type=jnp.float32,
    )
    scale = (x_tensor_scale * w_tensor_scale).astype(jnp.float32)
    y = sums.reshape(*lead, m, -1) * scale[..., None, None]
    return epilogue.apply(y, operands, out_dtype)


def _flat(shape: tuple[int, ...], rows: tuple[int, int]) -> tuple[int, int]:
    total = 1
    for size in shape[:-1]:
        total *= size
    return (total, rows[1])


def _float4(codes: jax.Array) -> jax.Array:
    """`[..., K/2]` bytes as `[..., K]` float4_e2m1fn, even index in the low nibble."""
    # Without the barrier XLA aborts when a 4-bit bitcast feeds a dot directly.
    pairs = lax.bitcast_convert_type(codes, jnp.float4_e2m1fn)
    return lax.optimization_barrier(pairs.reshape(*codes.shape[:-1], -1))
