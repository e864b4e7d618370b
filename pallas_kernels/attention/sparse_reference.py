"""The definition of block-sparse attention in plain jax.numpy, in float32."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from pallas_kernels.attention.quantize import QuantizedQKV, quantize_qkv
from pallas_kernels.attention.selection import BlockSelection


class _Operands(NamedTuple):
    """Float32 operands whose products are natural-log scores."""

    q: Float32[Array, "batch q_tokens heads head_dim"]
    k: Float32[Array, "batch kv_tokens heads head_dim"]
    v: Float32[Array, "batch kv_tokens heads head_dim"]
    proxies: Float32[Array, "batch kv_blocks heads head_dim"] | None


def attention(
    q: Float[Array, "batch q_tokens heads head_dim"],
    k: Float[Array, "batch kv_tokens heads head_dim"],
    v: Float[Array, "batch kv_tokens heads head_dim"],
    selection: BlockSelection,
    *,
    scale: float,
    precision: str,
    key_lengths: Array | None = None,
    rises: bool = False,
) -> Any:
    """Softmax over the keys of each tile's chosen blocks, and over its proxies.

        weight of a chosen key  = exp(q . k * scale)
        weight of a skipped block = keys in it * exp(q . mean key * scale)

    The output is the mean of values, and of skipped blocks' mean values, by these
    weights. Without centroids skipped blocks have no weight.

    Args:
        q: `[batch, q_tokens, heads, head_dim]`.
        k: `[batch, kv_tokens, heads, head_dim]`.
        v: `[batch, kv_tokens, heads, head_dim]`.
        selection: the blocks of each tile; its centroids must be of the operands
            that `precision` multiplies.
        scale: factor of the scores.
        key_lengths: keys of each batch entry that count; the others must be in blocks
            that no tile skips.
        rises: whether to return `block_rises` too.
        precision: `"bf16"`: of the operands as they are; `"int8"`: of quantized ones.

    Returns:
        `[batch, q_tokens, heads, head_dim]` in the dtype of q.
    """
    if precision == "int8":
        operands = quantize_qkv(q, k, v, scale=scale)
        found = quantized_attention(
            operands, selection, key_lengths=key_lengths, rises=rises
        )
        if rises:
            return found[0].astype(q.dtype), found[1]
        return found.astype(q.dtype)
    proxies = None
    if selection.centroids is not None:
        proxies = selection.centroids.keys
    q32, k32, v32 = (x.astype(jnp.float32) for x in (q, k, v))
    given = _Operands(q32 * scale, k32, v32, proxies)
    out = _attend(given, selection, key_lengths).astype(q.dtype)
    return (out, block_rises(q, k, selection, scale=scale)) if rises else out


def quantized_attention(
    operands: QuantizedQKV,
    selection: BlockSelection,
    *,
    key_lengths: Array | None = None,
    rises: bool = False,
) -> Any:
    """The same of quantized queries and keys, in the dtype of v; proxies in 8 bits."""
    q, k = operands.dequantize()
    proxies = None
    if selection.centroids is not None:
        share = selection.grid.block_kv
        values, scales = selection.centroids.quantized_keys(share)
        each = jnp.repeat(scales, share, axis=-1)[..., : values.shape[1]]
        proxies = values.astype(jnp.float32) * jnp.swapaxes(each, 1, 2)[..., None]
    v = operands.v.astype(jnp.float32)
    given = _Operands(q, k, v, proxies)
    out = _attend(given, selection, key_lengths).astype(operands.v.dtype)
    return (out, block_rises(q, k, selection, scale=1.0)) if rises else out


def _tiles(q: jax.Array, selection: BlockSelection) -> tuple[jax.Array, jax.Array]:
    """Rows `[q_tiles, batch, rows, ...]` and mask `[q_tiles, batch, heads, n]`."""
    grid = selection.grid
    missing = grid.q_tiles * grid.block_rows - grid.q_tokens
    padded = jnp.pad(q, ((0, 0), (0, missing), (0, 0), (0, 0)))
    split = padded.reshape(q.shape[0], grid.q_tiles, grid.block_rows, *q.shape[2:])
    return jnp.moveaxis(split, 1, 0), jnp.moveaxis(selection.chosen, 2, 0)


def _scores(rows: jax.Array, keys: jax.Array) -> jax.Array:
    return jnp.einsum("bqhd,bkhd->bhqk", rows, keys, precision=lax.Precision.HIGHEST)


def _attend(
    operands: _Operands, selection: BlockSelection, key_lengths: jax.Array | None
) -> jax.Array:
    grid = selection.grid
    values = operands.v
    visible = jnp.ones((1, grid.kv_tokens), bool)
    if key_lengths is not None:
        visible = jnp.arange(grid.kv_tokens) < key_lengths[:, None]
        values = jnp.where(visible[..., None, None], values, 0.0)
    if operands.proxies is not None and selection.centroids is not None:
        values = jnp.concatenate([values, selection.centroids.values], axis=1)

    def tile(inputs):
        rows, chosen = inputs
        tokens = jnp.repeat(chosen, grid.block_kv, axis=-1)[..., : grid.kv_tokens]
        tokens = tokens & visible[:, None]
        scores = _scores(rows, operands.k)
        scores = jnp.where(tokens[:, :, None], scores, -jnp.inf)
        if operands.proxies is not None:
            proxies = _scores(rows, operands.proxies) + jnp.log(grid.lengths())
            proxies = jnp.where(chosen[:, :, None], -jnp.inf, proxies)
            scores = jnp.concatenate([scores, proxies], axis=-1)
        weights = jax.nn.softmax(scores, axis=-1)
        return jnp.einsum(
            "bhqk,bkhd->bqhd", weights, values, precision=lax.Precision.HIGHEST
        )

    out = lax.map(tile, _tiles(operands.q, selection))
    out = jnp.moveaxis(out, 0, 1)
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, : grid.q_tokens]


def block_rises(
    q: Float[Array, "batch q_tokens heads head_dim"],
    k: Float[Array, "batch kv_tokens heads head_dim"],
    selection: BlockSelection,
    *,
    scale: float,
) -> Float32[Array, "batch heads q_tiles kv_blocks"]:
    """How much each computed block adds, at most: what `choose.after_step` reads.

        rise = max over rows of log2(weights of the block / weights of those before it)

    LiteAttention compares the largest score of a block with the largest before it; the
    sums that are compared here are what a kernel has that keeps no maximum.

    Args:
        q: `[batch, q_tokens, heads, head_dim]`.
        k: `[batch, kv_tokens, heads, head_dim]`.
        selection: the blocks that are computed, in the order of their numbers.
        scale: factor of the scores.

    Returns:
        `[batch, heads, q_tiles, kv_blocks]`, infinite for the first block of a tile and
        for blocks that are not computed.
    """
    grid = selection.grid
    keys = k.astype(jnp.float32)
    missing = grid.kv_blocks * grid.block_kv - grid.kv_tokens
    rows = jnp.arange(grid.q_tiles * grid.block_rows).reshape(grid.q_tiles, -1)

    def tile(inputs):
        (queries, chosen), valid = inputs
        scores = _scores(queries, keys)
        scores = jnp.pad(
            scores, ((0, 0), (0, 0), (0, 0), (0, missing)), constant_values=-jnp.inf
        )
        blocks = scores.reshape(*scores.shape[:3], grid.kv_blocks, grid.block_kv)
        masses = jax.nn.logsumexp(blocks, axis=-1)
        masses = jnp.where(chosen[:, :, None], masses, -jnp.inf)
        before = lax.cumlogsumexp(masses, axis=3)[..., :-1]
        # Nothing came before the first: its rise is infinite, see below.
        before = jnp.where(jnp.isfinite(before), before, 0.0)
        rise = (masses[..., 1:] - before) / jnp.log(2.0)
        found = jnp.max(jnp.where(valid[:, None], rise, -jnp.inf), axis=2)
        found = jnp.pad(found, ((0, 0), (0, 0), (1, 0)), constant_values=jnp.inf)
        first = jnp.cumsum(chosen, axis=-1) == 1
        return jnp.where(chosen & ~first, found, jnp.inf)

    found = lax.map(
        tile, (_tiles(q.astype(jnp.float32) * scale, selection), rows < grid.q_tokens)
    )
    return jnp.moveaxis(found, 0, 2)
