"""Shared memory and barriers of the attention kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels.attention.tiles import ROWS, Tile

# Numbers of one TMA copy, whose box is at most 256 long.
NUMBERS_PER_COPY = 256
# What is read as a whole, a row of the array of that name.
_TABLES = (
    "k_scales",
    "blocks",
    "proxy_bias",
    "proxy_scales",
    "key_lengths",
    "rises",
)


def _swizzled(columns: int, dtype) -> tuple:
    """Transforms of a shared-memory buffer whose rows are `columns` long."""
    itemsize = jnp.dtype(dtype).itemsize
    swizzle = min(128, columns * itemsize)
    return (
        plgpu.TilingTransform((8, swizzle // itemsize)),
        plgpu.SwizzleTransform(swizzle),
    )


def _pieces(length: int) -> list[tuple[int, int]]:
    """Starts and lengths of copies."""
    starts = range(0, length, NUMBERS_PER_COPY)
    return [(start, min(NUMBERS_PER_COPY, length - start)) for start in starts]


def copy_vector(source, target, barrier) -> None:
    """Copies a vector to shared memory, in several pieces that arrive at `barrier`."""
    for start, length in _pieces(target.shape[0]):
        window = pl.ds(start, length)
        plgpu.copy_gmem_to_smem(source.at[window], target.at[window], barrier)


def copy_out(source, target) -> None:
    """Copies a vector from shared memory, in several pieces."""
    for start, length in _pieces(source.shape[0]):
        window = pl.ds(start, length)
        plgpu.copy_smem_to_gmem(source.at[window], target.at[window])


def scratch_buffers(inputs: Mapping[str, jax.Array], tile: Tile) -> dict[str, Any]:
    """Buffers and barriers by name.

    Args:
        inputs: the kernel's arrays by name; with scales, scores are in 8 bits.
        tile: how the work is cut.
    """
    head_dim, out_dtype = inputs["q"].shape[-1], inputs["v"].dtype
    stages, warpgroups = tile.stages, tile.warpgroups
    quantized = "q_scales" in inputs

    def matrix(shape, dtype):
        transforms = _swizzled(head_dim, dtype)
        return plgpu.SMEM((*shape, head_dim), dtype, transforms=transforms)

    scratch: dict[str, Any] = {
        "q": matrix((warpgroups, ROWS), inputs["q"].dtype),
        "k": matrix((stages, tile.block_kv), inputs["k"].dtype),
        "v": matrix((stages, tile.block_kv), out_dtype),
        "sums": plgpu.SMEM((warpgroups, ROWS), jnp.float32),
        "q_full": plgpu.Barrier(
            num_arrivals=2 if quantized else 1, num_barriers=warpgroups
        ),
        "k_full": plgpu.Barrier(num_barriers=stages),
        "v_full": plgpu.Barrier(num_barriers=stages),
        "k_empty": plgpu.Barrier(num_arrivals=warpgroups, num_barriers=stages),
        "v_empty": plgpu.Barrier(num_arrivals=warpgroups, num_barriers=stages),
    }
    if tile.turns:
        scratch["turn"] = plgpu.Barrier(num_barriers=warpgroups)
    if quantized:
        scratch["out"] = matrix((warpgroups, ROWS), out_dtype)
        scratch["q_scales"] = plgpu.SMEM((warpgroups, ROWS), jnp.float32)
    copies = 0
    for name in _TABLES:
        if name in inputs:
            length = inputs[name].shape[-1]
            scratch[name] = plgpu.SMEM((length,), inputs[name].dtype)
            copies += len(_pieces(length))
    if "rises" in inputs:
        scratch["rises_done"] = plgpu.Barrier(num_arrivals=warpgroups)
    if copies:
        scratch["tables_full"] = plgpu.Barrier(num_arrivals=copies)
    return scratch
