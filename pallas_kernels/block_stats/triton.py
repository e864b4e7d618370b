"""Statistics of a computed block and its delta, one pass over the row, by Triton."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.block_stats.cache import CachedDelta, CacheFormat, check_format
from pallas_kernels.block_stats.reference import BlockStats, finish
from pallas_kernels.numerics import nvfp4
from pallas_kernels.triton_backend import calls, rows
from pallas_kernels.triton_backend.rows import RowShape

_BITS = {"bf16": 16, "int8": 8, "nvfp4": 4}


def block_stats(
    x: jax.Array,
    y: jax.Array,
    old: CachedDelta | None,
    *,
    cache_format: CacheFormat,
    shape: RowShape | None = None,
) -> BlockStats:
    """Same as `reference.block_stats`, in one kernel and a sum over rows.

    Raises:
        NotImplementedError: not bfloat16, rows that are too long, or for NVFP4 not a
            multiple of 16.
    """
    check_format(cache_format)
    if x.dtype != jnp.bfloat16 or y.dtype != jnp.bfloat16:
        raise NotImplementedError(
            f"row kernels read bfloat16, found {x.dtype} and {y.dtype}"
        )
    leading, k = x.shape[:-1], x.shape[-1]
    if cache_format == "nvfp4" and k % nvfp4.BLOCK:
        raise NotImplementedError(
            f"NVFP4 needs K to be a multiple of {nvfp4.BLOCK}, found {k}"
        )
    m = x.size // k
    tiles = rows.row_tiles(m, k, shape)
    none = jnp.zeros((1,), jnp.float32)
    arrays = [x.reshape(m, k), y.reshape(m, k), none, none, none]
    if old is not None:
        arrays[2] = old.values.reshape(m, -1)
        if old.scales is not None:
            arrays[3] = old.scales.reshape(m)
        if old.block_scales is not None:
            bits = jax.lax.bitcast_convert_type(old.block_scales, jnp.uint8)
            arrays[4] = bits.reshape(m, -1)
    scaled, blocks = cache_format != "bf16", cache_format == "nvfp4"
    dtype = {"bf16": jnp.bfloat16, "int8": jnp.int8, "nvfp4": jnp.uint8}[cache_format]
    sums, delta, scales, block_scales = calls.call(
        "block_stats:block_stats",
        arrays,
        [
            jax.ShapeDtypeStruct((m, 4), jnp.float32),
            jax.ShapeDtypeStruct((m, k // 2 if blocks else k), dtype),
            jax.ShapeDtypeStruct((m if scaled else 1,), jnp.float32),
            jax.ShapeDtypeStruct((m, k // nvfp4.BLOCK) if blocks else (1,), jnp.uint8),
        ],
        grid=(tiles.programs,),
        launch=tiles.launch,
        M=m,
        K=k,
        K_PADDED=tiles.channels,
        OLD=0 if old is None else _BITS[old.format],
        NEW=_BITS[cache_format],
        ROWS=tiles.rows,
    )
    block_scales = jax.lax.bitcast_convert_type(block_scales, jnp.float8_e4m3fn)
    cached = CachedDelta(
        delta.reshape(*leading, -1),
        scales.reshape(leading) if scaled else None,
        block_scales.reshape(*leading, -1) if blocks else None,
    )
    return finish(sums.reshape(*leading, 4), cached, has_old=old is not None)
