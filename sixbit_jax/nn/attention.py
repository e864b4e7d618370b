"""Scaled dot-product attention; picks the implementation for the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def attention(
    query: Float[Array, "batch tokens heads head_dim"],
    key: Float[Array, "batch tokens heads head_dim"],
    value: Float[Array, "batch tokens heads head_dim"],
) -> Float[Array, "batch tokens heads head_dim"]:
    """softmax(Q K^T / sqrt(head_dim)) V over all tokens.

    On an NVIDIA GPU 16-bit inputs run in cuDNN; everything else runs in XLA.
    """
    sixteen_bit = query.dtype in (jnp.bfloat16, jnp.float16)
    on_gpu = jax.default_backend() == "gpu"
    implementation = "cudnn" if sixteen_bit and on_gpu else "xla"
    return jax.nn.dot_product_attention(
        query, key, value, implementation=implementation
    )
