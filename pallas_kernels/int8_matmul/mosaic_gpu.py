"""`int8_matmul` on Hopper's s8 tensor cores."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.gemm.config import Tile
from pallas_kernels.gemm.epilogue import EpilogueOperands
from pallas_kernels.gemm.linear import linear


def int8_matmul(
    x_values: jax.Array,
    x_scales: jax.Array,
    w_values: jax.Array,
    w_scales: jax.Array,
    operands: EpilogueOperands,
    out_dtype,
    *,
    interpret: bool = False,
    tile: Tile | None = None,
) -> jax.Array:
    """The GEMM kernel with one scale per row of x and one per row of w.

    Raises:
        NotImplementedError: operands that are not int8, or sizes the kernel refuses.
    """
    if x_values.dtype != jnp.int8 or w_values.dtype != jnp.int8:
        raise NotImplementedError(
            f"int8_matmul needs int8 operands, found {x_values.dtype} and "
            f"{w_values.dtype}"
        )
    return linear(
        x_values,
        w_values,
        row_scale=x_scales.astype(jnp.float32),
        column_scale=w_scales.astype(jnp.float32),
        scalar_scale=None,
        operands=operands,
        out_dtype=out_dtype,
        interpret=interpret,
        tile=tile,
    )
