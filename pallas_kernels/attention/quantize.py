"""INT8 queries and keys for 8-bit attention, and the sums that make them safe."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from pallas_kernels.attention import tiles

_LEVELS = 127.0
_SMALLEST_AMAX = 1e-12
# The mean of many keys is taken of few: every 31st, coprime to usual widths of frames.
_MEAN_STRIDE = 31
_MEAN_STRIDED_FROM = 4096


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedQKV:
    """Operands of 8-bit attention.

    The exponent of 2 of the softmax is q_values . k_values * q_scales * k_scales: the
    softmax scale and log2(e) are inside `q_scales`.

    Attributes:
        q_values: `[batch, q_tokens, heads, head_dim]` int8.
        q_scales: `[batch, heads, q_tokens]` float32, one per query.
        k_values: `[batch, kv_tokens, heads, head_dim]` int8, keys less their mean.
        k_scales: `[batch, heads, ceil(kv_tokens / scale_tokens)]` float32.
        v: `[batch, kv_tokens, heads, head_dim]`, as it came.
        scale_tokens: keys of one head that share a scale, in order.
    """

    q_values: Int8[Array, "batch q_tokens heads head_dim"]
    q_scales: Float[Array, "batch heads q_tokens"]
    k_values: Int8[Array, "batch kv_tokens heads head_dim"]
    k_scales: Float[Array, "batch heads kv_blocks"]
    v: Float[Array, "batch kv_tokens heads head_dim"]
    scale_tokens: int = dataclasses.field(metadata={"static": True})

    def dequantize(
        self,
    ) -> tuple[
        Float[Array, "batch q_tokens heads head_dim"],
        Float[Array, "batch kv_tokens heads head_dim"],
    ]:
        """Float32 q and k whose products are natural-log scores, softmax scale in."""
        q_scales = jnp.swapaxes(self.q_scales, 1, 2)[..., None] * math.log(2.0)
        tokens = self.k_values.shape[1]
        k_scales = jnp.repeat(self.k_scales, self.scale_tokens, axis=-1)[..., :tokens]
        return (
            self.q_values.astype(jnp.float32) * q_scales,
            self.k_values.astype(jnp.float32) * jnp.swapaxes(k_scales, 1, 2)[..., None],
        )


def key_mean_stride(tokens: int) -> int:
    """Of which keys the mean is taken.

    Any vector may be subtracted, so an estimate of the mean is as right as the mean.
    """
    return _MEAN_STRIDE if tokens >= _MEAN_STRIDED_FROM else 1


def quantize_qkv(
    q: Float[Array, "batch q_tokens heads head_dim"],
    k: Float[Array, "batch kv_tokens heads head_dim"],
    v: Float[Array, "batch kv_tokens heads head_dim"],
    *,
    scale: float | None = None,
    scale_tokens: int | None = None,
) -> QuantizedQKV:
    """Quantizes queries per token and keys per block, after removing the keys' mean.

    Subtracting one vector from all keys of a head adds the same number to all scores
    of a query, which softmax ignores; it removes the bias that would otherwise take
    most of the eight bits (SageAttention, section 4.2).

    Args:
        q: `[batch, q_tokens, heads, head_dim]`, after normalization and rotary
            embedding.
        k: `[batch, kv_tokens, heads, head_dim]`, likewise.
        v: `[batch, kv_tokens, heads, head_dim]`.
        scale: softmax scale; `None` is head_dim ** -0.5.
        scale_tokens: keys that share a scale; `None` is the largest key block of the
            kernel for this head dimension, so that scores cost it one scalar per block.

    Returns:
        The operands of 8-bit attention.
    """
    head_dim = q.shape[-1]
    scale = head_dim**-0.5 if scale is None else scale
    scale_tokens = scale_tokens or tiles.scale_tokens(head_dim)
    q32 = q.astype(jnp.float32)
    amax = jnp.max(jnp.abs(q32), axis=-1, keepdims=True)
    q_step = jnp.maximum(amax, _SMALLEST_AMAX) / _LEVELS
    q_values = jnp.round(q32 / q_step).astype(jnp.int8)
    q_scales = jnp.swapaxes(q_step[..., 0], 1, 2) * (scale / math.log(2.0))

    k32 = k.astype(jnp.float32)
    stride = key_mean_stride(k.shape[1])
    centred = k32 - jnp.mean(k32[:, ::stride], axis=1, keepdims=True)
    batch, tokens, heads, _ = k.shape
    blocks = -(-tokens // scale_tokens)
    token_amax = jnp.max(jnp.abs(centred), axis=-1)
    token_amax = jnp.pad(
        token_amax, ((0, 0), (0, blocks * scale_tokens - tokens), (0, 0))
    )
    block_amax = jnp.max(token_amax.reshape(batch, blocks, scale_tokens, heads), axis=2)
    k_step = jnp.maximum(block_amax, _SMALLEST_AMAX) / _LEVELS
    per_token = jnp.repeat(k_step, scale_tokens, axis=1)[:, :tokens, :, None]
    k_values = jnp.round(centred / per_token).astype(jnp.int8)
    return QuantizedQKV(
        q_values, q_scales, k_values, jnp.swapaxes(k_step, 1, 2), v, scale_tokens
    )
