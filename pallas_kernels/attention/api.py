"""Attention over video and text tokens, by the fastest way the device supports."""

from __future__ import annotations

import functools
from typing import Literal

from jaxtyping import Array, Float

from pallas_kernels.attention import cudnn, mosaic_gpu, reference
from pallas_kernels.attention.quantize import QuantizedQKV
from pallas_kernels.dispatch import Implementation, dispatch, needs_hopper

Precision = Literal["bf16", "int8"]


def attention(
    q: Float[Array, "batch q_tokens heads head_dim"],
    k: Float[Array, "batch kv_tokens heads head_dim"],
    v: Float[Array, "batch kv_tokens heads head_dim"],
    *,
    precision: Precision = "bf16",
    scale: float | None = None,
    implementation: str | None = None,
) -> Float[Array, "batch q_tokens heads head_dim"]:
    """Softmax attention without a mask.

        out = softmax(q k^T * scale) v, per batch entry and head

    Args:
        q: `[batch, q_tokens, heads, head_dim]`, any number of tokens.
        k: `[batch, kv_tokens, heads, head_dim]`, after rotary embedding like q.
        v: `[batch, kv_tokens, heads, head_dim]`.
        precision: `"bf16"` multiplies in the dtype of the inputs. `"int8"` quantizes q
            and k (see `quantize_qkv`) and multiplies probabilities with v in 16 bits.
        scale: factor of the scores; `None` is head_dim ** -0.5.
        implementation: `"mosaic_gpu"` (Hopper), `"cudnn"` (bf16 only), `"reference"`,
            or `None` for the first that supports the device and the inputs.

    Returns:
        `[batch, q_tokens, heads, head_dim]` in the dtype of q.

    Raises:
        ValueError: shapes or dtypes that do not belong together, or another precision.
        NotImplementedError: the named implementation does not support the inputs.
        ExceptionGroup: no implementation does.
    """
    if precision not in ("bf16", "int8"):
        raise ValueError(
            f"attention: precision must be 'bf16' or 'int8', found {precision!r}"
        )
    if q.ndim != 4 or k.shape != (q.shape[0], k.shape[1], *q.shape[2:]):
        raise ValueError(
            f"attention: q {q.shape} must be [batch, q_tokens, heads, head_dim] and k "
            f"{k.shape} agree with it in all but the number of tokens"
        )
    if v.shape != k.shape:
        raise ValueError(f"attention: k {k.shape} and v {v.shape} must have one shape")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    arrays = (q, k, v)
    kernel = Implementation(
        "mosaic_gpu",
        functools.partial(
            mosaic_gpu.attention, *arrays, scale=scale, precision=precision
        ),
        needs_hopper,
    )
    candidates = [kernel]
    if precision == "bf16":
        library = Implementation(
            "cudnn",
            functools.partial(cudnn.attention, *arrays, scale=scale),
            cudnn.needs_cudnn_gpu,
        )
        candidates.append(library)
    candidates.append(
        Implementation(
            "reference",
            functools.partial(
                reference.attention, *arrays, scale=scale, precision=precision
            ),
        )
    )
    return dispatch("attention", candidates, implementation)


def quantized_attention(
    operands: QuantizedQKV, *, implementation: str | None = None
) -> Float[Array, "batch q_tokens heads head_dim"]:
    """`attention` with `precision="int8"`, of operands that are quantized already.

    Args:
        operands: from `quantize_qkv` or `norm_rope_qkv`.
        implementation: `"mosaic_gpu"` (Hopper), `"reference"`, or `None` for the first
            that supports the device and the inputs.

    Returns:
        `[batch, q_tokens, heads, head_dim]` in the dtype of v.

    Raises:
        NotImplementedError: the named implementation does not support the inputs.
        ExceptionGroup: no implementation does.
    """
    candidates = [
        Implementation(
            "mosaic_gpu",
            functools.partial(mosaic_gpu.quantized_attention, operands),
            needs_hopper,
        ),
        Implementation(
            "reference", functools.partial(reference.quantized_attention, operands)
        ),
    ]
    return dispatch("attention", candidates, implementation)
