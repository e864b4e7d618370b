"""Ways of choosing blocks: from centroids, from what a step measured, by a fixed mask.

Each returns a `BlockSelection`, whose `density()` is the realised share.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, UInt8

from pallas_kernels.attention.grid import BlockGrid
from pallas_kernels.attention.means import Centroids
from pallas_kernels.attention.selection import BlockSelection, select

_VARIANCE_FLOOR = 1e-6
# LiteAttention's careful setting: a block below 2^-10 of what came before it.
CAREFUL = -10.0


def everything(
    batch: int, heads: int, grid: BlockGrid, centroids: Centroids | None = None
) -> BlockSelection:
    """All blocks: dense attention."""
    shape = (batch, heads, grid.q_tiles, grid.kv_blocks)
    return select(jnp.ones(shape, bool), grid, centroids)


def by_threshold(
    centroids: Centroids,
    grid: BlockGrid,
    tau: Float[Array, ""] | float,
    *,
    approximate: bool = True,
    implementation: str | None = None,
) -> BlockSelection:
    """The threshold test of Sol-Attn (arXiv 2607.24027); no sort, no top-k.

        chosen[i, j] = c_i . k_j > c_i . mean(k) + tau * sqrt(var_i + 1e-6)
        var_i = sum_d c_id^2 Var_j[k_jd]

    c_i is the mean query of tile i in exponents of two, k_j the mean key of block j;
    c_i . k_j is the mean score of the tile's rows against that key. Blocks that touch
    the tile's own tokens are chosen too.

    Args:
        centroids: of the operands of this attention.
        grid: tiles and blocks.
        tau: standard deviations above the mean score that a block needs; minus infinity
            is dense. May be traced.
        approximate: whether skipped blocks count by their centroids, or not at all.
        implementation: see `select`.

    Returns:
        The selection.
    """
    queries, keys = centroids.queries, centroids.keys
    precision = lax.Precision.HIGHEST
    scores = jnp.einsum("bihd,bjhd->bhij", queries, keys, precision=precision)
    level = jnp.einsum("bihd,bhd->bhi", queries, keys.mean(1), precision=precision)
    variance = jnp.einsum(
        "bihd,bhd->bhi", jnp.square(queries), keys.var(1), precision=precision
    )
    threshold = level + tau * jnp.sqrt(variance + _VARIANCE_FLOOR)
    mask = (scores > threshold[..., None]) | grid.near()
    kept = centroids if approximate else None
    return select(mask, grid, kept, implementation=implementation)


def no_skips(batch: int, heads: int, grid: BlockGrid) -> UInt8[Array, "b h tiles n"]:
    """The state of `by_history` before the first step: one bit per block, none set."""
    return jnp.zeros((batch, heads, grid.q_tiles, -(-grid.kv_blocks // 8)), jnp.uint8)


def _unpacked(state: jax.Array, grid: BlockGrid) -> Bool[Array, "b h tiles blocks"]:
    return jnp.unpackbits(state, axis=-1, count=grid.kv_blocks).astype(bool)


def by_history(
    state: UInt8[Array, "batch heads q_tiles bytes"],
    grid: BlockGrid,
    centroids: Centroids | None = None,
    *,
    implementation: str | None = None,
) -> BlockSelection:
    """LiteAttention: what earlier steps found negligible stays skipped.

    Args:
        state: from `no_skips` or `after_step`; its bits are the skipped blocks.
        grid: tiles and blocks.
        centroids: see `BlockSelection`.
        implementation: see `select`.

    Returns:
        The selection.
    """
    kept = ~_unpacked(state, grid)
    return select(kept, grid, centroids, implementation=implementation)


def after_step(
    state: UInt8[Array, "batch heads q_tiles bytes"],
    rises: Float32[Array, "batch heads q_tiles kv_blocks"],
    grid: BlockGrid,
    *,
    threshold: Float[Array, ""] | float = CAREFUL,
) -> UInt8[Array, "batch heads q_tiles bytes"]:
    """The state for the next step: skipped blocks stay skipped, others may join.

    Args:
        state: what this step ran with.
        rises: of the blocks that this step computed, see `reference.block_rises`; the
            others do not matter.
        grid: tiles and blocks.
        threshold: a block whose rise is at most this is skipped from now on.

    Returns:
        The new state, of the same shape.
    """
    skipped = _unpacked(state, grid) | (rises <= threshold)
    skipped = skipped & ~grid.always()
    # The first block of a tile is what the others are measured against.
    return jnp.packbits(skipped.at[..., 0].set(False), axis=-1)


def _runs(grid: BlockGrid, tokens_per_frame: int, size: int) -> np.ndarray:
    """Runs of video tokens in one frame and one tile: [tile, frame, first, last].

    Args:
        grid: tiles and blocks; video is what is not text.
        tokens_per_frame: in order.
        size: tokens of a tile.
    """
    token = np.arange(grid.kv_tokens)
    start, stop = grid.text
    video = (token < start) | (token >= stop)
    place = np.cumsum(video) - 1
    key = np.stack([token // size, place // tokens_per_frame], 1)[video]
    inside = (place % tokens_per_frame)[video]
    edges = np.flatnonzero(np.any(key[1:] != key[:-1], axis=1)) + 1
    firsts = np.concatenate([[0], edges])
    lasts = np.concatenate([edges, [len(key)]]) - 1
    return np.column_stack([key[firsts], inside[firsts], inside[lasts]])


def _static(grid: BlockGrid, tokens_per_frame: int, chosen) -> np.ndarray:
    """`[q_tiles, kv_blocks]`: whether any two of their runs satisfy `chosen`."""
    if grid.q_tokens != grid.kv_tokens:
        raise ValueError(
            f"masks over frames: expected as many queries as keys, found "
            f"{grid.q_tokens} and {grid.kv_tokens}"
        )
    queries = _runs(grid, tokens_per_frame, grid.block_rows)
    keys = _runs(grid, tokens_per_frame, grid.block_kv)
    frames = np.abs(queries[:, None, 1] - keys[None, :, 1])
    # Distance of the nearest positions of two runs, 0 where they overlap.
    apart = np.maximum(
        keys[None, :, 2] - queries[:, None, 3], queries[:, None, 2] - keys[None, :, 3]
    )
    found = chosen(frames, np.maximum(apart, 0), keys[None, :, 1])
    mask = np.zeros((grid.q_tiles, grid.kv_blocks), bool)
    rows = np.broadcast_to(queries[:, None, 0], found.shape)
    columns = np.broadcast_to(keys[None, :, 0], found.shape)
    np.logical_or.at(mask, (rows, columns), found)
    return mask


def _everywhere(
    mask: np.ndarray, batch: int, heads: int, grid: BlockGrid, centroids
) -> BlockSelection:
    shape = (batch, heads, *mask.shape)
    return select(jnp.broadcast_to(jnp.asarray(mask), shape), grid, centroids)


def radial(
    batch: int,
    heads: int,
    grid: BlockGrid,
    *,
    tokens_per_frame: int,
    width: float = 1.0,
    centroids: Centroids | None = None,
) -> BlockSelection:
    """Radial attention (arXiv 2506.19852): the farther in time, the narrower in space.

    With D = 2^floor(log2 max(|frames apart|, 1)) and S tokens in a frame, two tokens
    attend if their positions are less than `width` * S / D apart; where that is less
    than one token, every ceil(D / (width * S))-th frame keeps the same position. The
    first frame is attended by all.

    Args:
        batch, heads: of the operands; all get the same mask.
        grid: tiles and blocks.
        tokens_per_frame: S.
        width: 1 is the paper's; less is sparser.
        centroids: see `BlockSelection`.

    Returns:
        The selection.

    Raises:
        ValueError: queries and keys are not the same tokens.
    """
    span = width * tokens_per_frame

    def chosen(frames, apart, key_frames):
        octave = 2.0 ** np.floor(np.log2(np.maximum(frames, 1)))
        banded = apart < span / octave
        every = np.maximum(np.ceil(octave / span), 1)
        diagonal = (apart == 0) & (frames % every == 0)
        return np.where(span < octave, diagonal, banded) | (key_frames == 0)

    mask = _static(grid, tokens_per_frame, chosen)
    return _everywhere(mask, batch, heads, grid, centroids)


def window(
    batch: int,
    heads: int,
    grid: BlockGrid,
    *,
    tokens_per_frame: int,
    frames: int,
    centroids: Centroids | None = None,
) -> BlockSelection:
    """Frames at most `frames` apart attend to each other.

    Args:
        batch, heads: of the operands; all get the same mask.
        grid: tiles and blocks.
        tokens_per_frame: in order.
        frames: 0 is a frame's own tokens only.
        centroids: see `BlockSelection`.

    Returns:
        The selection.

    Raises:
        ValueError: queries and keys are not the same tokens.
    """
    mask = _static(grid, tokens_per_frame, lambda found, *_: found <= frames)
    return _everywhere(mask, batch, heads, grid, centroids)
