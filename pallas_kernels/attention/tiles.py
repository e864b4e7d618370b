"""How an attention kernel is cut into tiles, and the choice for each shape."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from pallas_kernels import dispatch

# Rows of q of one compute warpgroup: one wgmma tall, so that scores, probabilities and
# the output fit its registers.
ROWS = 64
# Hopper: bytes of shared memory that one block may ask for, less barriers and what
# alignment costs.
SHARED_MEMORY_BYTES = 232_448 - 2_048


@dataclasses.dataclass(frozen=True)
class Tile:
    """How one thread block attends.

    Attributes:
        block_kv: keys per pipeline stage.
        stages: pipeline stages in shared memory.
        warpgroups: compute warpgroups, of 64 rows of q each (2 to 4).
        turns: whether warpgroups take turns at the tensor cores, so that the softmax
            of one runs during the products of another.
        online: whether the running maximum follows the scores (the textbook
            algorithm). Otherwise it stays that of the first block, which needs
            neither a maximum nor a rescaling per block, and overflows only if scores
            rise very far above it; see `mosaic_gpu.quantized_attention`.
    """

    block_kv: int = 128
    stages: int = 2
    warpgroups: int = 2
    turns: bool = True
    online: bool = False

    @property
    def block_rows(self) -> int:
        """Rows of q of one thread block."""
        return ROWS * self.warpgroups

    def shared_memory_bytes(self, head_dim: int, *, quantized: bool) -> int:
        """What operands and output take, without scales and barriers."""
        narrow, wide = (1 if quantized else 2), 2
        rows = self.block_rows * head_dim * (narrow + (wide if quantized else 0))
        return rows + self.stages * self.block_kv * head_dim * (narrow + wide)

    def busy(self, rows: int, heads: int) -> float:
        """Share of the work that is not waste when all blocks take equally long.

        Args:
            rows: of q per head; the last block of a head may be partly empty.
            heads: of all batch entries.
        """
        blocks = heads * -(-rows // self.block_rows)
        at_a_time = dispatch.multiprocessors()
        waves = -(-blocks // at_a_time)
        return heads * rows / (waves * at_a_time * self.block_rows)


def choose_tile(
    q_shape: tuple[int, ...], *, quantized: bool, dtype=jnp.bfloat16
) -> Tile:
    """The tile that measured best, see `benchmarks/notes_kernels_attention.md`.

    Args:
        q_shape: `[batch, q_tokens, heads, head_dim]`.
        quantized: whether scores are INT8.
        dtype: of the values.
    """
    batch, q_tokens, heads, head_dim = q_shape
    tiles = _BEST.get((head_dim, quantized), (Tile(),))
    if jnp.dtype(dtype) != jnp.bfloat16:
        # Float16 ends at 65,504: its probabilities need the running maximum.
        return dataclasses.replace(tiles[0], online=True)

    def worth(tile: Tile) -> float:
        return tile.busy(q_tokens, batch * heads)

    # The first unless another wastes clearly less.
    best = max(tiles, key=worth)
    return best if worth(best) > worth(tiles[0]) * _WORTH_CHANGING else tiles[0]


def tile_for(
    blocks: tuple[int, int], head_dim: int, *, quantized: bool, dtype=jnp.bfloat16
) -> Tile:
    """The measured tile that cuts scores into these blocks.

    Args:
        blocks: rows of q, and keys.
        head_dim: of the operands.
        quantized: whether scores are INT8.
        dtype: of the values.

    Raises:
        NotImplementedError: no tile does.
    """
    tiles = _BEST.get((head_dim, quantized), (Tile(),))
    for tile in tiles:
        if (tile.block_rows, tile.block_kv) == blocks:
            online = tile.online or jnp.dtype(dtype) != jnp.bfloat16
            return dataclasses.replace(tile, online=online)
    raise NotImplementedError(
        f"the Mosaic GPU attention kernel has blocks of queries by keys of "
        f"{[(tile.block_rows, tile.block_kv) for tile in tiles]} at head dimension "
        f"{head_dim}, found {blocks}"
    )


def scale_tokens(head_dim: int) -> int:
    """Keys that share a scale in 8-bit attention: a multiple of any tile's keys."""
    return max(tile.block_kv for tile in _BEST.get((head_dim, True), (Tile(),)))


_WORTH_CHANGING = 1.01
# TFLOP/s on an H200: 584 and 644 at 17,776 tokens, 48 heads of 64; 775 and 890 at
# 32,760 tokens, 12 heads of 128. Three warpgroups have 160 registers per thread, which
# at head dimension 128 leaves room for the scores of 64 keys. Four have 112: as fast
# per block of rows, with other remainders.
_BEST = {
    (64, False): (Tile(128, 2, 3), Tile(64, 4, 4)),
    (64, True): (Tile(128, 2, 3, turns=False), Tile(64, 4, 4, turns=False)),
    (128, False): (Tile(64, 4, 3),),
    (128, True): (Tile(64, 4, 3, turns=False),),
}
