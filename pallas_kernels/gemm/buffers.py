"""Shared memory and barriers of one GEMM block."""

from __future__ import annotations

import functools

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels.gemm.config import COMPUTE_WARPGROUPS, STORE_ROWS, Epilogue, Tile

# Rows of a tile in shared memory, of which TMA's tiled view needs whole ones.
TILED_ROWS = 8


def _transforms(columns: int, dtype) -> tuple:
    """Tiles of eight rows by one swizzled row."""
    itemsize = jnp.dtype(dtype).itemsize
    swizzle = plgpu.find_swizzle(columns * itemsize * 8)
    return (
        plgpu.TilingTransform((TILED_ROWS, swizzle // itemsize)),
        plgpu.SwizzleTransform(swizzle),
    )


def _tiled(shape: tuple[int, ...], dtype):
    return plgpu.SMEM(shape, dtype, transforms=_transforms(shape[-1], dtype))


def rows_buffer(shape: tuple[int, ...], dtype, untiled: bool):
    """Shared memory whose last two axes are rows and columns of a global array.

    Args:
        shape: the last axis is one swizzled row.
        dtype: the dtype of the elements.
        untiled: make a pair that aliases: the tiles that wgmma and the warpgroup see,
            and the plain rows that TMA sees. Both lie in memory alike, but TMA clips
            plain rows at any M and tiles only at multiples of 8.
    """
    tiled = _tiled(shape, dtype)
    if not untiled:
        return tiled
    return plgpu.RefUnion(
        tiled, plgpu.SMEM(shape, dtype, transforms=_transforms(shape[-1], dtype)[1:])
    )


def scratch_types(
    tile: Tile,
    epilogue: Epilogue,
    vectors: dict[str, jax.Array],
    *,
    operand_dtype,
    out_dtype,
    store_columns: int,
    untiled: bool,
) -> dict:
    """Everything one block holds.

    Args:
        tile: how the block works.
        epilogue: what follows the products.
        vectors: operands of the epilogue that vary along one axis.
        operand_dtype: the dtype of A and W.
        out_dtype: the dtype of the result and the residual.
        store_columns: columns per store.
        untiled: see `rows_buffer`.

    Returns:
        Operand stages `a` and `w`, slots `store` per warpgroup, barriers `full` and
        `empty` per stage, one buffer per vector with the barrier `ready`, and
        `residual_ready`.
    """
    slots = tile.slots(tile.chunks(store_columns), epilogue)
    alternate = tile.split == "alternate"
    empty_barrier = (
        functools.partial(plgpu.ClusterBarrier, collective_axes=("cluster",))
        if tile.cluster
        else plgpu.Barrier
    )
    types = {
        "a": rows_buffer(
            (tile.stages, tile.block_rows, tile.depth), operand_dtype, untiled
        ),
        "w": _tiled((tile.stages, tile.block_columns, tile.depth), operand_dtype),
        "store": rows_buffer(
            (COMPUTE_WARPGROUPS, slots, STORE_ROWS, store_columns), out_dtype, untiled
        ),
        "full": plgpu.Barrier(
            num_arrivals=2, num_barriers=tile.stages * (2 if alternate else 1)
        ),
        "empty": empty_barrier(
            num_arrivals=1 if alternate else COMPUTE_WARPGROUPS,
            num_barriers=tile.stages,
        ),
    }
    for name, value in vectors.items():
        length = tile.rows if name == "row_scale" else tile.columns
        types[name] = plgpu.SMEM((COMPUTE_WARPGROUPS, length), value.dtype)
    if vectors:
        types["ready"] = plgpu.Barrier(
            num_arrivals=len(vectors), num_barriers=COMPUTE_WARPGROUPS
        )
    if epilogue.residual:
        types["residual_ready"] = plgpu.Barrier(num_barriers=COMPUTE_WARPGROUPS * slots)
    return types
