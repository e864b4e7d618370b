"""Which blocks of keys each tile of queries attends to: lists that a kernel reads."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from pallas_kernels.attention.grid import BlockGrid
from pallas_kernels.attention.means import Centroids


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockSelection:
    """Blocks of keys that are computed exactly, and what stands for the others.

    Attributes:
        blocks: `[batch, heads, q_tiles, kv_blocks]` int32: numbers of the chosen
            blocks, ascending, then fillers of `kv_blocks`.
        counts: `[batch, heads, q_tiles]` int32, at least 1: how many are chosen.
        centroids: each skipped block counts as its mean key and its mean value, as
            often as it has keys; `None` drops skipped blocks.
        grid: what the numbers refer to.
    """

    blocks: Int32[Array, "batch heads q_tiles kv_blocks"]
    counts: Int32[Array, "batch heads q_tiles"]
    centroids: Centroids | None
    grid: BlockGrid = dataclasses.field(metadata={"static": True})

    def mask(self) -> Bool[Array, "batch heads q_tiles kv_blocks"]:
        """Whether a block is chosen."""
        width = self.blocks.shape[-1]
        rows = self.blocks.reshape(-1, width)
        empty = jnp.zeros(rows.shape, bool)
        row = jnp.arange(rows.shape[0])[:, None]
        return empty.at[row, rows].set(True, mode="drop").reshape(self.blocks.shape)

    def density(self) -> Float[Array, ""]:
        """Share of the blocks that is computed exactly, mean over tiles and heads."""
        blocks = self.grid.kv_blocks
        # Of what is skipped, so that all blocks are exactly 1.
        skipped = jnp.mean((blocks - self.counts).astype(jnp.float32))
        return 1.0 - skipped / blocks


def select(
    mask: Bool[Array, "batch heads q_tiles kv_blocks"],
    grid: BlockGrid,
    centroids: Centroids | None = None,
) -> BlockSelection:
    """Lists of the chosen blocks; no sort, one pass over the mask.

    Args:
        mask: which blocks are wanted; those of `grid.always()` are added, and the first
            block where nothing is chosen.
        grid: how the scores are cut.
        centroids: see `BlockSelection`.

    Returns:
        The selection.

    Raises:
        ValueError: a mask of another shape.
    """
    shape = (grid.q_tiles, grid.kv_blocks)
    if mask.ndim != 4 or mask.shape[2:] != shape:
        raise ValueError(
            f"select: expected a mask [batch, heads, {shape[0]}, {shape[1]}], found "
            f"{mask.shape}"
        )
    mask = mask | grid.always()
    mask = mask.at[..., 0].set(mask[..., 0] | ~mask.any(-1))
    width = grid.kv_blocks
    # How many are chosen up to and with each block. A product of zeros and ones is
    # exact, and faster than a running sum.
    upper = np.triu(np.ones((width, width), np.float32)).astype(jnp.bfloat16)
    position = jnp.matmul(
        mask.astype(jnp.bfloat16), upper, preferred_element_type=jnp.float32
    ).astype(jnp.int32)
    rows = position.reshape(-1, width)
    cells = rows.shape[0] * width
    block = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), rows.shape)
    place = jnp.arange(rows.shape[0], dtype=jnp.int32)[:, None] * width + rows - 1
    # Skipped blocks go to places of their own outside the lists, where they are lost.
    outside = cells + jnp.arange(cells, dtype=jnp.int32).reshape(rows.shape)
    place = jnp.where(mask.reshape(rows.shape), place, outside)
    lists = jnp.full((cells,), width, jnp.int32)
    lists = lists.at[place].set(block, mode="drop", unique_indices=True)
    return BlockSelection(lists.reshape(mask.shape), position[..., -1], centroids, grid)
