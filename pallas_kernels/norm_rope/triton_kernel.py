"""The Triton kernel of `triton.py`; importing it needs the extra `triton`."""

# Triton names the dimensions of a kernel in capitals, and reads its source as text.

import triton  # pyrefly: ignore
import triton.language as tl  # pyrefly: ignore

from pallas_kernels.triton_backend.arithmetic import (  # pyrefly: ignore
    finite_or_infinite,
    int8_scales,
    round_to_even,
)

_OUT, _QUERIES, _KEYS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def norm_rope(
    x_ptr,
    row_factor_ptr,
    weight_ptr,
    bias_ptr,
    table_ptr,
    mean_ptr,
    out_ptr,
    scale_ptr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    HAS_ROW_FACTOR: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BIAS_STRIDE: tl.constexpr,
    ROTARY: tl.constexpr,
    MODE: tl.constexpr,
    FACTOR: tl.constexpr,
    SCALE_BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Norm, affine map and rotary embedding of BLOCK tokens and GROUP heads.

    NORM is 0, 1 (rms) or 2 (layer). MODE 0 stores the values, 1 INT8 queries with a
    scale per token, 2 INT8 keys less their mean with a scale per BLOCK of tokens.
    """
    block, first, entry = tl.program_id(0), tl.program_id(1) * GROUP, tl.program_id(2)
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    token = tl.minimum(tokens, TOKENS - 1)
    real = (tokens < TOKENS)[:, None]
    channels = tl.arange(0, HEAD_DIM)
    pairs = tl.arange(0, HEAD_DIM // 2)
    if ROTARY:
        words = tl.load(table_ptr + token[:, None] * (HEAD_DIM // 2) + pairs[None, :])
        cos = ((words & 0xFFFF).to(tl.int32) - 32768).to(tl.float32) * (1.0 / 32767.0)
        sin = ((words >> 16).to(tl.int32) - 32768).to(tl.float32) * (1.0 / 32767.0)
    if HAS_ROW_FACTOR:
        row_factor = tl.load(row_factor_ptr + entry * TOKENS + token)[:, None]
    row = (entry.to(tl.int64) * TOKENS + token)[:, None] * (HEADS * HEAD_DIM)
    for head in range(first, min(first + GROUP, HEADS)):
        places = row + head * HEAD_DIM + channels[None, :]
        x = tl.load(x_ptr + places, mask=real, other=0.0).to(tl.float32)
        if NORM == 2:
            x -= (tl.sum(x, 1) / HEAD_DIM)[:, None]
        if NORM > 0:
            x *= tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + EPS)[:, None]
        if HAS_ROW_FACTOR:
            x *= row_factor  # pyrefly: ignore[unbound-name]
        if HAS_WEIGHT:
            weight = tl.load(weight_ptr + head * WEIGHT_STRIDE + channels)
            x *= weight.to(tl.float32)[None, :]
        if HAS_BIAS:
            bias = tl.load(bias_ptr + head * BIAS_STRIDE + channels)
            x += bias.to(tl.float32)[None, :]
        if ROTARY:
            even, odd = tl.reshape(x, (BLOCK, HEAD_DIM // 2, 2)).split()
            # pyrefly: ignore[unbound-name]
            turned = tl.join(even * cos - odd * sin, odd * cos + even * sin)
            x = tl.reshape(turned, (BLOCK, HEAD_DIM))
        cell = (entry * HEADS + head).to(tl.int64)
        if MODE == _OUT:
            tl.store(out_ptr + places, x.to(out_ptr.dtype.element_ty), mask=real)
        else:
            if MODE == _KEYS:
                mean = tl.load(mean_ptr + cell * HEAD_DIM + channels)
                x = tl.where(real, x - mean[None, :], 0.0)
            amax = tl.max(finite_or_infinite(x), 1)
            if MODE == _KEYS:
                amax = tl.zeros((BLOCK,), tl.float32) + tl.max(amax, 0)
            valid = amax < float("inf")
            scale, inverse = int8_scales(tl.where(valid, amax, 0.0))
            scaled = tl.where(valid[:, None], x * inverse[:, None], 0.0)
            values = tl.minimum(tl.maximum(round_to_even(scaled), -127.0), 127.0)
            tl.store(out_ptr + places, values.to(tl.int8), mask=real)
            scale = tl.where(valid, scale, float("nan"))
            if MODE == _KEYS:
                tl.store(scale_ptr + cell * SCALE_BLOCKS + block, tl.max(scale, 0))
            else:
                where = scale_ptr + cell * TOKENS + tokens
                tl.store(where, scale * FACTOR, mask=tokens < TOKENS)
