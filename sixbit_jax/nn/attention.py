"""Scaled dot-product attention; picks the implementation for the device."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.attention import api
from pallas_kernels.attention.api import Precision
from pallas_kernels.norm_rope import Heads, norm_rope, norm_rope_qkv

_FEW_KEYS = 64


def attention(
    query: Float[Array, "batch tokens heads head_dim"],
    key: Float[Array, "batch tokens heads head_dim"],
    value: Float[Array, "batch tokens heads head_dim"],
    *,
    kernels: bool = False,
    precision: Precision = "bf16",
    key_lengths: Int[Array, "batch"] | None = None,
) -> Float[Array, "batch tokens heads head_dim"]:
    """softmax(Q K^T / sqrt(head_dim)) V over all tokens.

    Args:
      query, key, value: 16-bit on a GPU for speed.
      kernels: whether our GPU kernels may run; they can be neither differentiated nor
        vectorized. Otherwise cuDNN (16-bit inputs on a GPU) or XLA.
      precision: "bf16", or "int8" for quantized scores.
      key_lengths: how many keys of each batch entry count, the first ones, at least 1;
        None is all. No mask of the size of the scores is made by the kernels.
    """
    sixteen_bit = query.dtype in (jnp.bfloat16, jnp.float16)
    on_gpu = sixteen_bit and jax.default_backend() == "gpu"
    if precision != "bf16" or (kernels and on_gpu):
        chosen = None if kernels else "reference"
        return api.attention(
            query,
            key,
            value,
            precision=precision,
            key_lengths=key_lengths,
            implementation=chosen,
        )
    # Few keys (a short prompt) make small scores, and tiles of cuDNN mostly empty.
    implementation = "cudnn" if on_gpu and key.shape[1] >= _FEW_KEYS else "xla"
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        key_value_seq_lengths=key_lengths,
        implementation=implementation,
    )


def attention_of_heads(
    query: Heads,
    key: Heads,
    value: Float[Array, "batch tokens heads head_dim"],
    *,
    kernels: bool = False,
    precision: Precision | Bool[Array, ""] = "bf16",
    key_lengths: Int[Array, "batch"] | None = None,
) -> Float[Array, "batch tokens heads head_dim"]:
    """`attention` of queries and keys that still need their norm and rotary embedding.

    With 8-bit scores, norm, embedding and quantization are one pass over the row.

    Args:
      query, key: the projections and what is to be done with them.
      value: as it is.
      kernels: see `attention`.
      precision: see `attention`; a traced boolean chooses "int8" where it is true.
      key_lengths: see `attention`.
    """
    if not isinstance(precision, str):
        fixed = partial(
            attention_of_heads,
            query,
            key,
            value,
            kernels=kernels,
            key_lengths=key_lengths,
        )
        return jax.lax.cond(
            precision, lambda: fixed(precision="int8"), lambda: fixed(precision="bf16")
        )
    chosen = None if kernels else "reference"
    if precision == "int8":
        operands = norm_rope_qkv(query, key, value, implementation=chosen)
        return api.quantized_attention(
            operands, key_lengths=key_lengths, implementation=chosen
        )
    q, k = (
        part.x if part.untouched else norm_rope(part, implementation=chosen)
        for part in (query, key)
    )
    return attention(q, k, value, kernels=kernels, key_lengths=key_lengths)
