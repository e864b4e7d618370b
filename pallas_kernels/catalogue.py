"""All operations at a size of CogVideoX-5b, traced only: what runs them here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import quantize_qkv
from pallas_kernels.attention.api import attention, quantized_attention
from pallas_kernels.block_stats.api import block_stats
from pallas_kernels.group_norm.api import channel_moments
from pallas_kernels.int8_matmul.api import int8_matmul
from pallas_kernels.norm_rope.api import norm_rope, norm_rope_qkv
from pallas_kernels.norm_rope.heads import Heads, Rotary
from pallas_kernels.nvfp4_expand.api import nvfp4_expand
from pallas_kernels.nvfp4_matmul.api import nvfp4_matmul
from pallas_kernels.quantize_int8.api import quantize_int8
from pallas_kernels.quantize_nvfp4.api import quantize_nvfp4

_TOKENS, _WIDTH, _HEADS, _HEAD_DIM = 1024, 3072, 48, 64
_BF16, _F32, _E4M3 = jnp.bfloat16, jnp.float32, jnp.float8_e4m3fn


def probes() -> dict[str, Callable[[], object]]:
    """For each operation: a function that traces it and runs nothing."""

    def shape(*size: int, dtype: Any = _BF16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(size, dtype)

    def traced(function: Callable, *arguments: Any) -> Callable[[], object]:
        # A new function each time: nothing traced for another device is found again.
        return lambda: jax.eval_shape(lambda *given: function(*given), *arguments)

    x = shape(_TOKENS, _WIDTH)
    heads = shape(1, _TOKENS, _HEADS, _HEAD_DIM)
    integers = (
        shape(_TOKENS, _WIDTH, dtype=jnp.int8),
        shape(_TOKENS, dtype=_F32),
        shape(_WIDTH, _WIDTH, dtype=jnp.int8),
        shape(_WIDTH, dtype=_F32),
    )
    weights = (
        shape(_WIDTH, _WIDTH // 2, dtype=jnp.uint8),
        shape(_WIDTH, _WIDTH // 16, dtype=_E4M3),
        shape(dtype=_F32),
    )
    stored = (
        shape(_TOKENS, _WIDTH // 2, dtype=jnp.uint8),
        shape(_TOKENS, _WIDTH // 16, dtype=_E4M3),
        shape(dtype=_F32),
    )
    angles = np.zeros((_TOKENS, _HEAD_DIM // 2), np.float32)

    def turned(x: jax.Array) -> Heads:
        return Heads(x, norm="layer", rotary=Rotary(angles, angles))

    def quantized(q: jax.Array, k: jax.Array, v: jax.Array) -> object:
        return norm_rope_qkv(turned(q), turned(k), v)

    operands = jax.eval_shape(quantize_qkv, heads, heads, heads)
    frames, pivot = shape(1, 2**20, 128), shape(1, 128, dtype=_F32)
    return {
        "attention": traced(attention, heads, heads, heads),
        "quantized_attention": traced(quantized_attention, operands),
        "int8_matmul": traced(int8_matmul, *integers),
        "nvfp4_expand": traced(nvfp4_expand, *weights),
        "quantize_int8": traced(quantize_int8, x),
        "quantize_nvfp4": traced(quantize_nvfp4, x),
        "block_stats": traced(block_stats, x, x),
        "norm_rope": traced(lambda x: norm_rope(turned(x)), heads),
        "norm_rope_qkv": traced(quantized, heads, heads, heads),
        "nvfp4_matmul": traced(nvfp4_matmul, *stored, *weights),
        "channel_moments": traced(channel_moments, frames, pivot),
    }


__all__ = ["probes"]
