"""NVFP4 weights to INT8 or bfloat16, one pass over the row, by Triton."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.triton_backend import calls, rows
from pallas_kernels.triton_backend.rows import RowShape


def nvfp4_expand(
    codes: jax.Array,
    block_scales: jax.Array,
    tensor_scale: jax.Array,
    *,
    to: str,
    scales: jax.Array | None = None,
    shape: RowShape | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Same as `reference.nvfp4_expand`, in one kernel.

    Raises:
        NotImplementedError: rows that are too long.
    """
    *lead, n, half = codes.shape
    m, k = codes.size // half, 2 * half
    tiles = rows.row_tiles(m, k, shape)
    tensor_scale = tensor_scale.astype(jnp.float32).reshape(-1)
    given = tensor_scale if scales is None else scales.astype(jnp.float32).reshape(m)
    own_scales = to == "int8" and scales is None
    values, found = calls.call(
        "nvfp4_expand:nvfp4_expand",
        (
            codes.reshape(m, half),
            jax.lax.bitcast_convert_type(block_scales, jnp.uint8).reshape(m, -1),
            tensor_scale,
            given,
        ),
        [
            jax.ShapeDtypeStruct((m, k), jnp.int8 if to == "int8" else jnp.bfloat16),
            jax.ShapeDtypeStruct((m if own_scales else 1,), jnp.float32),
        ],
        grid=(tiles.programs,),
        launch=tiles.launch,
        M=m,
        K=k,
        K_PADDED=tiles.channels,
        ROWS_PER_ENTRY=n,
        TO_INT8=to == "int8",
        GIVEN=scales is not None,
        ROWS=tiles.rows,
    )
    values = values.reshape(*lead, n, k)
    if to == "bfloat16":
        return values
    return values, found.reshape(*lead, n) if scales is None else scales
