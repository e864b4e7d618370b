"""The epilogue's arithmetic on one chunk of accumulators, inside the kernel."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.gemm.config import Epilogue

# 2 sqrt(2/pi) log2(e): sigmoid(2u) as a power of two.
_SLOPE = 2.302208198


def gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU in its tanh form, written as x * sigmoid(2u): exact in the far tail too."""
    # The reciprocal as rsqrt squared, because one approximate instruction and a product
    # beat a correctly rounded division.
    cubic = x * x * (-0.044715 * _SLOPE) - _SLOPE
    root = lax.rsqrt(1.0 + jnp.exp2(x * cubic))
    return x * (root * root)


def before_residual(
    sums: jax.Array,
    epilogue: Epilogue,
    vector: Callable[[str, int], jax.Array],
    scalar: Callable[[], jax.Array],
    text_rows: jax.Array | int,
) -> jax.Array:
    """Scales, bias, activation and gate of one chunk, in float32.

    Args:
        sums: accumulators.
        epilogue: what to apply.
        vector: `vector(name, dimension)` is the chunk's part of an operand, broadcast
            along the other dimension.
        scalar: the scale of the whole product.
        text_rows: rows of this chunk, from its first, that use the text gate; any
            number, also negative.

    Returns:
        float32 of the same shape.
    """
    y = sums.astype(jnp.float32)
    if epilogue.row_scale:
        y = y * vector("row_scale", 0)
    if epilogue.column_scale:
        y = y * vector("column_scale", 1)
    if epilogue.scalar_scale:
        y = y * scalar()
    if epilogue.bias:
        y = y + vector("bias", 1)
    if epilogue.activation == "gelu_tanh":
        y = gelu_tanh(y)
    if epilogue.gate:
        gates = vector("gate", 1)
        if epilogue.text_rows:
            index = plgpu.broadcasted_iota(
                jnp.int32, y.shape, 0, layout=plgpu.Layout.WGMMA
            )
            gates = jnp.where(index < text_rows, vector("text_gate", 1), gates)
        y = y * gates
    return y
