"""The definition of attention in plain jax.numpy, in float32, a few rows at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention.quantize import QuantizedQKV, quantize_qkv

# Bytes of scores that exist at once; full scores at 17,776 tokens would take 60 GB.
_SCORE_BYTES = 256 * 2**20


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    precision: str,
    key_lengths: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention in float32; with `precision="int8"`, of quantized operands."""
    if precision == "int8":
        quantized = quantize_qkv(q, k, v, scale=scale)
        out = quantized_attention(quantized, key_lengths=key_lengths)
        return out.astype(q.dtype)
    return _attention_float32(q, k, v, scale, key_lengths).astype(q.dtype)


def quantized_attention(
    operands: QuantizedQKV, *, key_lengths: jax.Array | None = None
) -> jax.Array:
    """Softmax attention of quantized queries and keys, in the dtype of v."""
    q, k = operands.dequantize()
    out = _attention_float32(q, k, operands.v, 1.0, key_lengths)
    return out.astype(operands.v.dtype)


def _attention_float32(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: float,
    key_lengths: jax.Array | None,
) -> jax.Array:
    batch, q_tokens, heads, head_dim = q.shape
    keys = k.astype(jnp.float32)
    values = v.astype(jnp.float32)
    visible = None
    if key_lengths is not None:
        visible = jnp.arange(k.shape[1]) < key_lengths[:, None]
        # What is hidden may be anything: zero times NaN is NaN.
        values = jnp.where(visible[..., None, None], values, 0.0)

    def rows(block: jax.Array) -> jax.Array:
        scores = jnp.einsum(
            "bqhd,bkhd->bhqk",
            block.astype(jnp.float32) * scale,
            keys,
            precision=lax.Precision.HIGHEST,
        )
        if visible is not None:
            scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
        return jnp.einsum(
            "bhqk,bkhd->bqhd",
            jax.nn.softmax(scores, axis=-1),
            values,
            precision=lax.Precision.HIGHEST,
        )

    per_row = 4 * batch * heads * k.shape[1]
    block_rows = max(1, min(q_tokens, _SCORE_BYTES // per_row))
    blocks = -(-q_tokens // block_rows)
    if blocks == 1:
        return rows(q)
    padded = jnp.pad(q, ((0, 0), (0, blocks * block_rows - q_tokens), (0, 0), (0, 0)))
    split = padded.reshape(batch, blocks, block_rows, heads, head_dim)
    out = lax.map(rows, jnp.moveaxis(split, 1, 0))
    out = jnp.moveaxis(out, 0, 1).reshape(batch, -1, heads, head_dim)
    return out[:, :q_tokens]
