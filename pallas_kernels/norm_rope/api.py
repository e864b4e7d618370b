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
from pallas_kernels.norm_rope import mosaic_gpu
from pallas_kernels.norm_rope.heads import Heads
from pallas_kernels.norm_rope.loop import tokens_of


def norm_rope(
    heads: Heads, *, implementation: str | None = None
) -> Float[Array, "batch tokens heads head_dim"]:
    """Norm, affine map and rotary embedding of queries or keys; see `Heads`.

    Args:
      heads: the operands.
      implementation: "mosaic_gpu" (Hopper), "reference", or None for the first that
        can run here.

    Returns:
      [batch, tokens, heads, head_dim] in the dtype of x, rounded once.

    Raises:
      NotImplementedError: the named implementation cannot run these inputs.
    """
    run = [
        Implementation("mosaic_gpu", lambda: mosaic_gpu.norm_rope(heads), needs_hopper),
        Implementation("reference", lambda: heads.values().astype(heads.x.dtype)),
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
      implementation: "mosaic_gpu" (Hopper), "reference", or None for the first that
        can run here.

    Returns:
      The operands of `attention.quantized_attention`; see `quantize_qkv`.

    Raises:
      NotImplementedError: the named implementation cannot run these inputs.
    """
    head_dim = q.x.shape[-1]
    factor = head_dim**-0.5 if scale is None else scale

    def fused() -> QuantizedQKV:
        tokens = tiles.scale_tokens(head_dim)
        if tokens != tokens_of(head_dim):
            raise NotImplementedError(
                f"norm_rope_qkv has one scale per {tokens_of(head_dim)} keys of "
                f"{head_dim} channels, the attention kernel takes one per {tokens}"
            )
        stride = key_mean_stride(k.x.shape[1])
        mean = jnp.mean(k.every(stride).values(), axis=1, keepdims=True)
        q_values, q_scales = mosaic_gpu.quantized_queries(q, factor)
        k_values, k_scales = mosaic_gpu.quantized_keys(k, mean)
        return QuantizedQKV(q_values, q_scales, k_values, k_scales, v, tokens)

    run = [
        Implementation("mosaic_gpu", fused, needs_hopper),
        Implementation(
            "reference", lambda: quantize_qkv(q.values(), k.values(), v, scale=factor)
        ),
    ]
    return dispatch("norm_rope_qkv", run, implementation)
