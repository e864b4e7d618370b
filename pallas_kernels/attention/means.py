"""Mean queries, keys and values of blocks: what blocks are judged and replaced by."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int8

from pallas_kernels.attention.grid import BlockGrid
from pallas_kernels.attention.means_gpu import Part, block_means
from pallas_kernels.attention.quantize import QuantizedQKV
from pallas_kernels.dispatch import Implementation, dispatch, needs_hopper

_LEVELS = 127.0
_SMALLEST_AMAX = 1e-12


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Centroids:
    """Means over tiles of queries and over blocks of keys and values.

    Attributes:
        queries: `[batch, q_tiles, heads, head_dim]`, times softmax scale and log2(e):
            products with `keys` are exponents of two.
        keys: `[batch, kv_blocks, heads, head_dim]`; of 8-bit attention, of the keys
            less their mean.
        values: `[batch, kv_blocks, heads, head_dim]`.
    """

    queries: Float32[Array, "batch q_tiles heads head_dim"]
    keys: Float32[Array, "batch kv_blocks heads head_dim"]
    values: Float32[Array, "batch kv_blocks heads head_dim"]

    def quantized_keys(
        self, share: int
    ) -> tuple[
        Int8[Array, "batch kv_blocks heads head_dim"],
        Float32[Array, "batch heads groups"],
    ]:
        """`keys` in 8 bits, one scale per head and `share` blocks in order."""
        batch, blocks, heads, head_dim = self.keys.shape
        missing = -blocks % share
        padded = jnp.pad(self.keys, ((0, 0), (0, missing), (0, 0), (0, 0)))
        split = padded.reshape(batch, -1, share, heads, head_dim)
        amax = jnp.max(jnp.abs(split), axis=(2, 4), keepdims=True)
        step = jnp.maximum(amax, _SMALLEST_AMAX) / _LEVELS
        values = jnp.round(split / step).astype(jnp.int8).reshape(padded.shape)
        return values[:, :blocks], jnp.swapaxes(step[:, :, 0, :, 0], 1, 2)


def _sums(x: jax.Array, size: int, dtype=jnp.float32) -> jax.Array:
    """`[batch, tokens, ...]` to sums over `size` tokens, `[batch, blocks, ...]`."""
    batch, tokens, *rest = x.shape
    blocks = -(-tokens // size)
    missing = blocks * size - tokens
    padded = jnp.pad(x, ((0, 0), (0, missing), *((0, 0) for _ in rest)))
    split = padded.reshape(batch, blocks, size, *rest)
    return jnp.sum(split, axis=2, dtype=dtype)


def _means(sums: jax.Array, tokens: int, size: int) -> jax.Array:
    starts = jnp.arange(sums.shape[1]) * size
    lengths = jnp.minimum(tokens - starts, size).astype(jnp.float32)
    return sums.astype(jnp.float32) / lengths[:, None, None]


def centroids(
    q: Float[Array, "batch q_tokens heads head_dim"],
    k: Float[Array, "batch kv_tokens heads head_dim"],
    v: Float[Array, "batch kv_tokens heads head_dim"],
    grid: BlockGrid,
    *,
    scale: float | None = None,
    implementation: str | None = None,
) -> Centroids:
    """Centroids for 16-bit attention.

    Args:
        q: `[batch, q_tokens, heads, head_dim]`, as attention takes them.
        k: `[batch, kv_tokens, heads, head_dim]`.
        v: `[batch, kv_tokens, heads, head_dim]`.
        grid: tiles and blocks.
        scale: softmax scale; `None` is head_dim ** -0.5.
        implementation: `"mosaic_gpu"` (Hopper), `"reference"`, or `None` for the first
            that can run here.

    Returns:
        Means in float32.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    rows, keys, factor = grid.block_rows, grid.block_kv, scale * math.log2(math.e)

    def fused() -> Centroids:
        parts = (Part(q, rows, factor=factor), Part(k, keys), Part(v, keys))
        return Centroids(*block_means(parts))

    def definition() -> Centroids:
        queries = _means(_sums(q, rows), grid.q_tokens, rows)
        return Centroids(
            queries * factor,
            _means(_sums(k, keys), grid.kv_tokens, keys),
            _means(_sums(v, keys), grid.kv_tokens, keys),
        )

    return _first(fused, definition, implementation)


def quantized_centroids(
    operands: QuantizedQKV, grid: BlockGrid, *, implementation: str | None = None
) -> Centroids:
    """Centroids for 8-bit attention, of the quantized queries and keys.

    Args:
        operands: from `quantize_qkv` or `norm_rope_qkv`.
        grid: tiles and blocks; `block_kv` must divide `operands.scale_tokens`.
        implementation: see `centroids`.

    Returns:
        Means in float32.

    Raises:
        ValueError: blocks of keys that do not share a scale.
    """
    rows, keys = grid.block_rows, grid.block_kv
    if operands.scale_tokens % keys:
        raise ValueError(
            f"quantized_centroids: expected blocks that divide the "
            f"{operands.scale_tokens} keys of a scale, found {keys}"
        )
    share = operands.scale_tokens // keys

    def fused() -> Centroids:
        queries = Part(operands.q_values, rows, row_scales=operands.q_scales)
        key_part = Part(
            operands.k_values,
            keys,
            block_scales=operands.k_scales,
            blocks_per_scale=share,
        )
        return Centroids(*block_means((queries, key_part, Part(operands.v, keys))))

    def definition() -> Centroids:
        q_scales = jnp.swapaxes(operands.q_scales, 1, 2)[..., None]
        queries = _sums(operands.q_values.astype(jnp.float32) * q_scales, rows)
        k_sums = _sums(operands.k_values, keys, jnp.int32).astype(jnp.float32)
        k_scales = jnp.repeat(operands.k_scales, share, axis=-1)
        k_scales = jnp.swapaxes(k_scales[..., : grid.kv_blocks], 1, 2)[..., None]
        return Centroids(
            _means(queries, grid.q_tokens, rows),
            _means(k_sums * k_scales, grid.kv_tokens, keys),
            _means(_sums(operands.v, keys), grid.kv_tokens, keys),
        )

    return _first(fused, definition, implementation)


def _first(fused, definition, implementation: str | None) -> Centroids:
    run = [
        Implementation("mosaic_gpu", fused, needs_hopper),
        Implementation("reference", definition, definition=True),
    ]
    return dispatch("centroids", run, implementation)
