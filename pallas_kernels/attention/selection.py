"""Which blocks of keys each tile of queries attends to: lists that a kernel reads."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from pallas_kernels.attention import lists_gpu
from pallas_kernels.attention.grid import BlockGrid
from pallas_kernels.attention.means import Centroids
from pallas_kernels.dispatch import Implementation, dispatch, needs_hopper

# Numbers that a copy to shared memory must be a multiple of: 32 bytes.
_MULTIPLE = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockSelection:
    """Blocks of keys that are computed exactly, and what stands for the others.

    Attributes:
        lists: `[batch, heads, q_tiles, places]` int32: numbers of the chosen blocks,
            ascending, then fillers of `kv_blocks`; in the last place how many are
            chosen, at least 1.
        chosen: whether a block is: the same as a mask.
        centroids: each skipped block counts as its mean key and its mean value, as
            often as it has keys; `None` drops skipped blocks.
        grid: what the numbers refer to.
    """

    lists: Int32[Array, "batch heads q_tiles places"]
    chosen: Bool[Array, "batch heads q_tiles kv_blocks"]
    centroids: Centroids | None
    grid: BlockGrid = dataclasses.field(metadata={"static": True})

    @property
    def blocks(self) -> Int32[Array, "batch heads q_tiles kv_blocks"]:
        """The lists without the count."""
        return self.lists[..., : self.grid.kv_blocks]

    @property
    def counts(self) -> Int32[Array, "batch heads q_tiles"]:
        """How many blocks are chosen."""
        return self.lists[..., -1]

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
    *,
    implementation: str | None = None,
) -> BlockSelection:
    """Lists of the chosen blocks; no sort, one pass over the mask.

    Args:
        mask: which blocks are wanted; those of `grid.always()` are added, and the first
            block where nothing is chosen.
        grid: how the scores are cut.
        centroids: see `BlockSelection`.
        implementation: `"mosaic_gpu"` (Hopper), `"reference"`, or `None` for the first
            that can run here.

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
    # One place more than blocks, for the count.
    places = width + 1 + -(width + 1) % _MULTIPLE
    rows = mask.reshape(-1, width)
    run = [
        Implementation(
            "mosaic_gpu",
            lambda: lists_gpu.lists_of(rows.astype(jnp.uint8), places),
            needs_hopper,
        ),
        Implementation("reference", lambda: _lists_of(rows, places)),
    ]
    lists = dispatch("select", run, implementation)
    return BlockSelection(lists.reshape(*mask.shape[:3], places), mask, centroids, grid)


def _lists_of(mask: jax.Array, places: int) -> jax.Array:
    """What `lists_gpu.lists_of` does, of booleans."""
    rows, width = mask.shape
    # How many are chosen up to and with each block. A product of zeros and ones is
    # exact, and faster than a running sum.
    upper = np.triu(np.ones((width, width), np.float32)).astype(jnp.bfloat16)
    position = jnp.matmul(
        mask.astype(jnp.bfloat16), upper, preferred_element_type=jnp.float32
    ).astype(jnp.int32)
    block = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), mask.shape)
    row = jnp.arange(rows, dtype=jnp.int32)[:, None]
    # Skipped blocks go to places of their own outside the lists, where they are lost.
    outside = rows * places + row * width + block
    place = jnp.where(mask, row * places + position - 1, outside)
    lists = jnp.full((rows * places,), width, jnp.int32)
    lists = lists.at[place].set(block, mode="drop", unique_indices=True)
    return lists.reshape(rows, places).at[:, -1].set(position[:, -1])
