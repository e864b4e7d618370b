"""The Triton kernel of `triton.py`; importing it needs the extra `triton`."""

# Triton names the dimensions of a kernel in capitals, and reads its source as text.

import triton  # pyrefly: ignore
import triton.language as tl  # pyrefly: ignore

from pallas_kernels.triton_backend.arithmetic import encode_nvfp4  # pyrefly: ignore
from pallas_kernels.triton_backend.front import (  # pyrefly: ignore
    activation,
    hadamard,
    load_rows,
    rotate,
    store_stats,
)


@triton.jit
def quantize_nvfp4(
    x_ptr,
    affine_ptr,
    tensor_scale_ptr,
    codes_ptr,
    scales_ptr,
    stats_ptr,
    M: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    LAYER_NORM: tl.constexpr,
    EPS: tl.constexpr,
    AFFINE: tl.constexpr,
    ROWS_PER_BATCH: tl.constexpr,
    TEXT_ROWS: tl.constexpr,
    GELU: tl.constexpr,
    ROTATED: tl.constexpr,
    STATS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Rows of an activation to NVFP4 with a given tensor scale, ROWS at a time."""
    tensor_scale = tl.load(tensor_scale_ptr + tl.zeros((ROWS,), tl.int32))
    tiles = (M + ROWS - 1) // ROWS
    matrix = hadamard(tl.float16 if LAYER_NORM and not GELU else tl.bfloat16)
    first, step = tl.program_id(0), tl.num_programs(0)
    x = load_rows(x_ptr, first * ROWS + tl.arange(0, ROWS), M, K, K_PADDED)
    for tile in range(first, tiles, step):
        rows = tile * ROWS + tl.arange(0, ROWS)
        following = load_rows(x_ptr, rows + step * ROWS, M, K, K_PADDED)
        y = activation(
            x,
            affine_ptr,
            rows,
            M,
            K,
            K_PADDED,
            LAYER_NORM,
            EPS,
            AFFINE,
            ROWS_PER_BATCH,
            TEXT_ROWS,
            GELU,
        )
        if STATS:
            store_stats(stats_ptr, tile, y, rows, M)
        if ROTATED:
            y = rotate(y, matrix, ROWS, K_PADDED)
        codes, scales = encode_nvfp4(y, tensor_scale, ROWS, K_PADDED)
        row = rows.to(tl.int64)[:, None]
        pairs, blocks = tl.arange(0, K_PADDED // 2), tl.arange(0, K_PADDED // 16)
        exists = (rows < M)[:, None]
        tl.store(
            codes_ptr + row * (K // 2) + pairs[None, :],
            codes,
            mask=exists & (pairs < K // 2)[None, :],
        )
        tl.store(
            scales_ptr + row * (K // 16) + blocks[None, :],
            scales,
            mask=exists & (blocks < K // 16)[None, :],
        )
        x = following


@triton.jit
def row_amax(
    x_ptr,
    affine_ptr,
    amax_ptr,
    M: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    LAYER_NORM: tl.constexpr,
    EPS: tl.constexpr,
    AFFINE: tl.constexpr,
    ROWS_PER_BATCH: tl.constexpr,
    TEXT_ROWS: tl.constexpr,
    GELU: tl.constexpr,
    ROTATED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The largest finite magnitude of each row behind the front end."""
    tiles = (M + ROWS - 1) // ROWS
    matrix = hadamard(tl.float16 if LAYER_NORM and not GELU else tl.bfloat16)
    first, step = tl.program_id(0), tl.num_programs(0)
    x = load_rows(x_ptr, first * ROWS + tl.arange(0, ROWS), M, K, K_PADDED)
    for tile in range(first, tiles, step):
        rows = tile * ROWS + tl.arange(0, ROWS)
        following = load_rows(x_ptr, rows + step * ROWS, M, K, K_PADDED)
        y = activation(
            x,
            affine_ptr,
            rows,
            M,
            K,
            K_PADDED,
            LAYER_NORM,
            EPS,
            AFFINE,
            ROWS_PER_BATCH,
            TEXT_ROWS,
            GELU,
        )
        if ROTATED:
            y = rotate(y, matrix, ROWS, K_PADDED)
        magnitude = tl.abs(y)
        amax = tl.max(tl.where(magnitude < float("inf"), magnitude, 0.0), 1)
        tl.store(amax_ptr + rows, amax, mask=rows < M)
        x = following
