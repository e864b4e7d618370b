"""Sums of a channels-last activation at the speed of memory (Hopper).

A persistent grid: every block walks its own tiles through shared memory and keeps two
sums per element of a sub-tile in registers, so that nothing is exchanged between
threads. A sub-tile is a multiple of the channels long, so that an element of it always
belongs to the same channel. What the blocks found, a few megabytes, XLA adds up, and so
it does the rows that do not fill a tile for every block.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float

from pallas_kernels.dispatch import multiprocessors
from pallas_kernels.group_norm import reference
from pallas_kernels.group_norm.reference import ChannelMoments

# A sub-tile: 32 elements per thread and sum, 96 registers with the pivot. Its shape is
# one that a copy may have (at most 256 along each axis), whatever the channels are.
_ROWS, _COLUMNS = 32, 128
_ELEMENTS = _ROWS * _COLUMNS
# Sub-tiles that one copy brings (32 KiB), and copies in flight.
_SUB_TILES = 4
_STEPS = 4


def channel_moments(
    x: BFloat16[Array, "batch pixels C"],
    pivot: Float[Array, "batch C"],
    *,
    blocks: int | None = None,
    interpret: Any = False,
) -> ChannelMoments:
    """Same as `reference.channel_moments`.

    Args:
      x: activations.
      pivot: near the mean of each channel, float32.
      blocks: the blocks of the grid, per sample; None is one per multiprocessor.
      interpret: `plgpu.InterpretGPUParams()` runs the interpreter, for tests.

    Raises:
      NotImplementedError: not bfloat16, channels that do not divide a sub-tile or are
        fewer than its rows are long, too few pixels for one tile per block.
    """
    batch, pixels, channels = x.shape
    if x.dtype != jnp.bfloat16:
        raise NotImplementedError(f"the kernel reads bfloat16, found {x.dtype}")
    if channels < _COLUMNS or _ELEMENTS % channels:
        raise NotImplementedError(
            f"the kernel takes {_COLUMNS}, {2 * _COLUMNS}, ..., {_ELEMENTS} channels, "
            f"found {channels}"
        )
    blocks = blocks or multiprocessors()
    rows = _SUB_TILES * _ELEMENTS // channels
    tiles = pixels // (rows * blocks)
    if tiles == 0:
        raise NotImplementedError(
            f"the kernel takes at least {rows * blocks} pixels of {channels} channels, "
            f"found {pixels}"
        )
    kernel = plgpu.kernel(
        functools.partial(_sum_tiles, tiles=tiles, blocks=blocks),
        out_type=jax.ShapeDtypeStruct((2, batch, blocks, _ROWS, _COLUMNS), jnp.float32),
        grid=(batch, blocks),
        grid_names=("batch", "block"),
        interpret=interpret,
    )
    wide = jnp.tile(pivot.astype(jnp.float32), _ELEMENTS // channels)
    sums = kernel(x.reshape(batch, -1, _COLUMNS), wide.reshape(batch, _ROWS, _COLUMNS))
    total, squares = sums.reshape(2, batch, -1, channels).sum(2)
    done = tiles * rows * blocks
    if done < pixels:
        rest = reference.channel_moments(x[:, done:], pivot)
        total, squares = total + rest.total, squares + rest.squares
    return ChannelMoments(total, squares)


def _sum_tiles(x_ref, pivot_ref, sums_ref, *, tiles: int, blocks: int) -> None:
    sample, block = jax.lax.axis_index("batch"), jax.lax.axis_index("block")
    pivot = pivot_ref[sample]

    def step(_, tile, sums):
        total, squares = sums
        for part in range(_SUB_TILES):
            values = tile[pl.ds(part * _ROWS, _ROWS)].astype(jnp.float32)
            distance = values - pivot
            total = total + distance
            squares = squares + distance * distance
        return total, squares

    zeros = jnp.zeros((_ROWS, _COLUMNS), jnp.float32)
    # Neighbouring blocks read neighbouring tiles.
    spec = plgpu.BlockSpec(
        (_SUB_TILES * _ROWS, _COLUMNS), lambda i: (i * blocks + block, 0)
    )
    total, squares = plgpu.emit_pipeline(
        step,
        grid=(tiles,),
        in_specs=[spec],
        max_concurrent_steps=min(_STEPS, tiles),
        init_carry=(zeros, zeros),
    )(x_ref.at[sample])
    sums_ref[0, sample, block] = total
    sums_ref[1, sample, block] = squares
