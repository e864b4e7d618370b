"""Attention by cuDNN, through jax.nn."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.attention.quantize import QuantizedQKV, quantize_qkv

_AMPERE = (8, 0)
_LARGEST_HEAD_DIM = 128


def needs_cudnn_gpu() -> None:
    """Raises NotImplementedError unless the default device can run cuDNN attention."""
    found = dispatch.compute_capability()
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
    precision: str = "bf16",
    key_lengths: jax.Array | None = None,
) -> jax.Array:
    """cuDNN's fused attention; with `precision="int8"`, of quantized operands.

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
    if precision == "int8":
        made = quantize_qkv(q, k, v, scale=scale)
        return quantized_attention(made, key_lengths=key_lengths)
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=scale,
        key_value_seq_lengths=key_lengths,
        implementation="cudnn",
    )


def quantized_attention(
    operands: QuantizedQKV, *, key_lengths: jax.Array | None = None
) -> jax.Array:
    """cuDNN's attention of quantized queries and keys, multiplied in 16 bits.

    Only where no kernel multiplies them in 8 bits: as fast as without quantization.
    INT8 values are exact in both 16-bit formats; only products with scales round.

    Raises:
        NotImplementedError: as `attention`.
    """
    q, k = operands.dequantize()
    v = operands.v
    return attention(
        q.astype(v.dtype), k.astype(v.dtype), v, scale=1.0, key_lengths=key_lengths
    )
