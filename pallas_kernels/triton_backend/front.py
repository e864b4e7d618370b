"""What stands in front of an activation's quantization, for the Triton kernels.

LayerNorm, modulation, GELU and the block Hadamard of `row_tiles.site.SiteInput`, of
whole rows in registers. As in the Hopper kernels, values enter the rotation with 16
bits: bfloat16 as they came or behind GELU, float16 behind a norm.
"""

import triton  # pyrefly: ignore
import triton.language as tl  # pyrefly: ignore

from pallas_kernels.triton_backend.arithmetic import gelu_tanh  # pyrefly: ignore


@triton.jit
def hadamard(dtype: tl.constexpr):
    """The Sylvester-Hadamard matrix of +-1, [128, 128]."""
    both = tl.arange(0, 128)[:, None] & tl.arange(0, 128)[None, :]
    both ^= both >> 4
    both ^= both >> 2
    both ^= both >> 1
    return (1 - 2 * (both & 1)).to(tl.float32).to(dtype)


@triton.jit
def load_rows(x_ptr, rows, M: tl.constexpr, K: tl.constexpr, K_PADDED: tl.constexpr):
    """x of some rows, [rows, K_PADDED]; zero beyond K and beyond M.

    Kernels load the rows of their next tile before they compute, into registers. What
    Triton's own pipelining would do, asynchronous copies into shared memory that is
    not swizzled, makes the rotation's operands conflict eightfold on their way out.
    """
    channels = tl.arange(0, K_PADDED)
    exists = (rows < M)[:, None] & (channels < K)[None, :]
    places = rows.to(tl.int64)[:, None] * K + channels[None, :]
    return tl.load(x_ptr + places, mask=exists, other=0.0)


@triton.jit
def activation(
    x,
    affine_ptr,
    rows,
    M: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    LAYER_NORM: tl.constexpr,
    EPS: tl.constexpr,
    AFFINE: tl.constexpr,
    ROWS_PER_BATCH: tl.constexpr,
    TEXT_ROWS: tl.constexpr,
    GELU: tl.constexpr,
):
    """y of the rows x before the rotation, [rows, K_PADDED] float32 of 16 bits.

    Channels beyond K and rows beyond M are zero.
    """
    channels = tl.arange(0, K_PADDED)
    exists = (rows < M)[:, None] & (channels < K)[None, :]
    y = x.to(tl.float32)
    if LAYER_NORM:
        mean = tl.sum(y, 1) / K
        y = tl.where(exists, y - mean[:, None], 0.0)
        variance = tl.sum(y * y, 1) / K
        y *= tl.rsqrt(variance + EPS)[:, None]
    if AFFINE:
        variant = rows * 0
        if ROWS_PER_BATCH > 0:
            video = (rows % ROWS_PER_BATCH >= TEXT_ROWS).to(tl.int32)
            variant = rows // ROWS_PER_BATCH * 2 + video
        start = affine_ptr + variant[:, None] * (2 * K) + channels[None, :]
        factor = tl.load(start, mask=exists, other=0.0).to(tl.float32)
        addend = tl.load(start + K, mask=exists, other=0.0).to(tl.float32)
        y = y * factor + addend
    if LAYER_NORM and not GELU:
        y = y.to(tl.float16).to(tl.float32)
    if GELU:
        y = gelu_tanh(y)
        y = y.to(tl.bfloat16).to(tl.float32)
    elif AFFINE and not LAYER_NORM:
        y = y.to(tl.bfloat16).to(tl.float32)
    return y


@triton.jit
def rotate(y, matrix, ROWS: tl.constexpr, K_PADDED: tl.constexpr):
    """Every 128 channels of y times the Hadamard matrix, orthonormal."""
    blocks = tl.reshape(y, (ROWS * (K_PADDED // 128), 128)).to(matrix.dtype)
    turned = tl.dot(blocks, matrix) * 0.08838834764831845
    return tl.reshape(turned, (ROWS, K_PADDED))


@triton.jit
def store_stats(stats_ptr, tile, y, rows, M: tl.constexpr):
    """sum|y| and max|y| of a tile of rows, float32 [tiles, 1, 2]."""
    magnitude = tl.where((rows < M)[:, None], tl.abs(y), 0.0)
    tl.store(stats_ptr + 2 * tile, tl.sum(tl.sum(magnitude, 1), 0))
    tl.store(stats_ptr + 2 * tile + 1, tl.max(tl.max(magnitude, 1), 0))
