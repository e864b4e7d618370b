"""Attention by cuDNN, through jax.nn."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import compute_capability

_AMPERE = (8, 0)
_LARGEST_HEAD_DIM = 128


def needs_cudnn_gpu() -> None:
    """Raises NotImplementedError unless the default device can run cuDNN attention."""
    found = compute_capability()
    if found is None or found < _AMPERE:
        device = "no NVIDIA GPU" if found is None else f"compute capability {found}"
        raise NotImplementedError(
            f"cuDNN attention needs compute capability {_AMPERE} or later; the default "
            f"device has {device}"
        )


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    key_lengths: jax.Array | None = None,
) -> jax.Array:
    """cuDNN's fused attention.

    Raises:
        NotImplementedError: inputs that are not 16-bit, or a head dimension that cuDNN
            does not take.
    """
    if q.dtype not in (jnp.bfloat16, jnp.float16) or {k.dtype, v.dtype} != {q.dtype}:
        raise NotImplementedError(
            "cuDNN attention needs q, k and v all in bfloat16 or all in float16, found "
            f"{q.dtype}, {k.dtype} and {v.dtype}"
        )
    head_dim = q.shape[-1]
    if head_dim % 8 or head_dim > _LARGEST_HEAD_DIM:
        raise NotImplementedError(
            f"cuDNN attention needs a head dimension that is a multiple of 8 and at "
            f"most {_LARGEST_HEAD_DIM}, found {head_dim}"
        )
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=scale,
        key_value_seq_lengths=key_lengths,
        implementation="cudnn",
    )
