"""What stands between the q, k, v projections and attention; picks implementations."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.attention import tiles
from pallas_kernels.attention.quantize import (
    QuantizedQKV,
    key_mean_stride,
    quantize_qkv,
)
from pallas_kernels.dispatch import Implementation, dispatch, needs_hopper
from pallas_kernels.norm_rope import mosaic_gpu, triton
from pallas_kernels.norm_rope.heads import Heads
from pallas_kernels.norm_rope.loop import tokens_of
from pallas_kernels.triton_backend.calls import needs_triton


def norm_rope(
    heads: Heads, *, implementation: str | None = None
) -> Float[Array, "batch tokens heads head_dim"]:
    """Norm, affine map and rotary embedding of queries or keys; see `Heads`.

    Args:
      heads: the operands.
      implementation: "mosaic_gpu" (Hopper), "triton" (any GPU since Ampere),
        "reference", or None for the first that can run here.

    Returns:
      [batch, tokens, heads, head_dim] in the dtype of x, rounded once.

    Raises:
      NotImplementedError: the named implementation cannot run these inputs.
    """
    run = [
        Implementation("mosaic_gpu", lambda: mosaic_gpu.norm_rope(heads), needs_hopper),
        Implementation("triton", lambda: triton.norm_rope(heads), needs_triton),
        Implementation(
            "reference",
            lambda: heads.values().astype(heads.x.dtype),
            definition=True,
        ),
    ]
    return dispatch("norm_rope", run, implementation)


def norm_rope_qkv(
    q: Heads,
    k: Heads,
    v: Float[Array, "batch kv_tokens heads head_dim"],
    *,
    scale: float | None = None,
    implementation: str | None = None,
) -> QuantizedQKV:
    """`norm_rope` of queries and keys and their quantization for 8-bit attention.

    Args:
      q, k: the operands.
      v: values, as they are.
      scale: softmax scale; None is head_dim ** -0.5.
      implementation: "mosaic_gpu" (Hopper), "triton" (any GPU since Ampere),
        "reference", or None for the first that can run here.

    Returns:
      The operands of `attention.quantized_attention`; see `quantize_qkv`.

    Raises:
      NotImplementedError: the named implementation cannot run these inputs.
    """
    head_dim = q.x.shape[-1]
    factor = head_dim**-0.5 if scale is None else scale

    def key_mean():
        stride = key_mean_stride(k.x.shape[1])
        return jnp.mean(k.every(stride).values(), axis=1, keepdims=True)

    def fused() -> QuantizedQKV:
        tokens = tiles.scale_tokens(head_dim)
        if tokens != tokens_of(head_dim):
            raise NotImplementedError(
                f"norm_rope_qkv has one scale per {tokens_of(head_dim)} keys of "
                f"{head_dim} channels, the attention kernel takes one per {tokens}"
            )
        queries = mosaic_gpu.quantized_queries(q, factor)
        keys = mosaic_gpu.quantized_keys(k, key_mean())
        return QuantizedQKV(*queries, *keys, v, tokens)

    def portable() -> QuantizedQKV:
        tokens = tiles.scale_tokens(head_dim)
        queries = triton.quantized_queries(q, factor)
        keys = triton.quantized_keys(k, key_mean(), tokens)
        return QuantizedQKV(*queries, *keys, v, tokens)

    run = [
        Implementation("mosaic_gpu", fused, needs_hopper),
        Implementation("triton", portable, needs_triton),
        Implementation(
            "reference",
            lambda: quantize_qkv(q.values(), k.values(), v, scale=factor),
            definition=True,
        ),
    ]
    return dispatch("norm_rope_qkv", run, implementation)
