"""Attention on Hopper's tensor cores, in 16 bits or with 8-bit scores."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention.kernel import SUM_LIMIT, attend
from pallas_kernels.attention.lists import block_lists
from pallas_kernels.attention.memory import NUMBERS_PER_COPY
from pallas_kernels.attention.quantize import QuantizedQKV, quantize_qkv
from pallas_kernels.attention.selection import BlockSelection
from pallas_kernels.attention.tiles import Tile, choose_tile, tile_for

_HEAD_DIMS = (64, 128)
_TOKEN_MULTIPLE = 8


def _check(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    if q.shape[-1] not in _HEAD_DIMS:
        raise NotImplementedError(
            f"the Mosaic GPU attention kernel needs a head dimension in {_HEAD_DIMS}, "
            f"found {q.shape[-1]}"
        )
    if v.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
        raise NotImplementedError(
            "the Mosaic GPU attention kernel needs q, k and v all in bfloat16 or all "
            f"in float16, found {q.dtype}, {k.dtype} and {v.dtype}"
        )
    if not all(q.shape) or not k.shape[1]:
        raise NotImplementedError(
            f"the Mosaic GPU attention kernel needs tokens, found q {q.shape} and k "
            f"{k.shape}"
        )


def _padded(x: jax.Array) -> jax.Array:
    """Tokens rounded up to 8, the rows of a shared-memory tile."""
    missing = -x.shape[1] % _TOKEN_MULTIPLE
    if not missing:
        return x
    return jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0)))


def _tile(
    q_shape: tuple[int, ...],
    dtype,
    selection: BlockSelection | None,
    tile: Tile | None,
    *,
    quantized: bool,
) -> Tile:
    """The tile to run with; it must cut the scores as the selection does."""
    if selection is None:
        return tile or choose_tile(q_shape, quantized=quantized, dtype=dtype)
    grid = selection.grid
    tile = tile or tile_for(
        (grid.block_rows, grid.block_kv), q_shape[-1], quantized=quantized, dtype=dtype
    )
    if (tile.block_rows, tile.block_kv) != (grid.block_rows, grid.block_kv):
        raise NotImplementedError(
            f"the Mosaic GPU attention kernel needs a selection of {tile.block_rows} "
            f"queries by {tile.block_kv} keys for {tile}, found {grid}"
        )
    return tile


def _cut_blocks(selection: BlockSelection | None) -> int:
    """How many of the last blocks may hold keys beyond a length: those with text."""
    if selection is None:
        return 1
    grid = selection.grid
    return max(grid.kv_blocks - grid.text[0] // grid.block_kv, 1)


def _full_tiles(selection: BlockSelection | None) -> tuple[int, int]:
    """Tiles of queries that hold text: they attend to everything."""
    if selection is None:
        return 0, 0
    start, stop = selection.grid.text
    if start == stop:
        return 0, 0
    size = selection.grid.block_rows
    return start // size, -(-stop // size)


def _guarded(run, tile: Tile, guard: bool) -> tuple[jax.Array, ...]:
    """Runs with a fixed reference point, and again without if a row overflowed."""
    out, sums, *more = run(tile)
    if tile.online or not guard:
        return out, *more

    def again() -> tuple[jax.Array, ...]:
        out, _, *more = run(dataclasses.replace(tile, online=True))
        return out, *more

    # False for NaN as well.
    return lax.cond(jnp.all(sums < SUM_LIMIT), lambda: (out, *more), again)


def _result(
    found: tuple[jax.Array, ...], q_tokens: int, selection: BlockSelection | None
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """The output, and where it was asked for what each block adds."""
    out, *more = found
    out = out[:, :q_tokens]
    if not more or selection is None:
        return out
    ratios = more[0][..., : selection.grid.kv_blocks]
    first = jnp.cumsum(selection.chosen, axis=-1, dtype=jnp.int32) == 1
    later = selection.chosen & ~first
    return out, jnp.where(later, jnp.log2(ratios), jnp.inf)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    precision: str,
    selection: BlockSelection | None = None,
    key_lengths: jax.Array | None = None,
    tile: Tile | None = None,
    guard: bool = True,
    rises: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """The kernel, on 16-bit inputs; with `precision="int8"` it quantizes them first.

    See `quantized_attention` for the other arguments and the result.

    Raises:
        NotImplementedError: a dtype or a head dimension the kernel does not have.
    """
    _check(q, k, v)
    if precision == "int8":
        operands = quantize_qkv(q, k, v, scale=scale)
        return quantized_attention(
            operands,
            selection=selection,
            key_lengths=key_lengths,
            tile=tile,
            guard=guard,
            rises=rises,
        )
    tile = _tile(q.shape, v.dtype, selection, tile, quantized=False)
    arrays = tuple(map(_padded, (q, k, v)))
    lists = None
    if selection is not None:
        lists = block_lists(selection, v.dtype, quantized=False)

    def run(tile: Tile) -> tuple[jax.Array, ...]:
        return attend(
            *arrays,
            lists=lists,
            key_lengths=key_lengths,
            kv_tokens=k.shape[1],
            scale=scale,
            tile=tile,
            cut_blocks=_cut_blocks(selection),
            full_tiles=_full_tiles(selection),
            rises=rises,
        )

    return _result(_guarded(run, tile, guard), q.shape[1], selection)


def quantized_attention(
    operands: QuantizedQKV,
    *,
    selection: BlockSelection | None = None,
    key_lengths: jax.Array | None = None,
    tile: Tile | None = None,
    guard: bool = True,
    rises: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Attention of quantized queries and keys.

    Args:
        operands: from `quantize_qkv`.
        selection: the blocks of keys of each tile of queries; `None` is all.
        key_lengths: `[batch]`: the keys of each batch entry that count; `None` is all.
        tile: how the work is cut; `None` is the measured choice, or with a selection
            the one that it was made for.
        guard: whether rows whose scores rise far above those of their first block are
            noticed and everything computed again with a running maximum. Without,
            they are NaN.
        rises: whether to say how much each block adds; with a selection.

    Returns:
        `[batch, q_tokens, heads, head_dim]` in the dtype of v; with `rises` also what
        `sparse_reference.block_rises` defines.

    Raises:
        NotImplementedError: a dtype, a head dimension or a selection's blocks that the
            kernel does not have.
    """
    q, k, v = operands.q_values, operands.k_values, operands.v
    q_tokens = q.shape[1]
    _check(q.astype(v.dtype), k.astype(v.dtype), v)
    tile = _tile(q.shape, v.dtype, selection, tile, quantized=True)
    lists = None
    if selection is not None:
        lists = block_lists(selection, v.dtype, quantized=True)

    def run(tile: Tile) -> tuple[jax.Array, ...]:
        missing = -q_tokens % tile.block_rows
        blocks = operands.k_scales.shape[-1]
        return attend(
            _padded(operands.q_values),
            _padded(operands.k_values),
            _padded(operands.v),
            jnp.pad(operands.q_scales, ((0, 0), (0, 0), (0, missing))),
            jnp.pad(
                operands.k_scales, ((0, 0), (0, 0), (0, -blocks % NUMBERS_PER_COPY))
            ),
            lists,
            key_lengths,
            kv_tokens=operands.v.shape[1],
            scale=1.0,
            tile=tile,
            scale_tokens=operands.scale_tokens,
            cut_blocks=_cut_blocks(selection),
            full_tiles=_full_tiles(selection),
            rises=rises,
        )

    return _result(_guarded(run, tile, guard), q_tokens, selection)
