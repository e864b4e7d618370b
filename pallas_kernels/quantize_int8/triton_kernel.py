"""The Triton kernel of `triton.py`; importing it needs the extra `triton`."""

# Triton names the dimensions of a kernel in capitals, and reads its source as text.

import triton  # pyrefly: ignore
import triton.language as tl  # pyrefly: ignore

from pallas_kernels.triton_backend.arithmetic import encode_int8  # pyrefly: ignore
from pallas_kernels.triton_backend.front import (  # pyrefly: ignore
    activation,
    hadamard,
    load_rows,
    rotate,
    store_stats,
)


@triton.jit
def quantize_int8(
    x_ptr,
    affine_ptr,
    values_ptr,
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
    """Rows of an activation to INT8 with one scale each, ROWS at a time."""
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
        values, scales = encode_int8(y)
        channels = tl.arange(0, K_PADDED)
        exists = (rows < M)[:, None] & (channels < K)[None, :]
        places = rows.to(tl.int64)[:, None] * K + channels[None, :]
        tl.store(values_ptr + places, values, mask=exists)
        tl.store(scales_ptr + rows, scales, mask=rows < M)
        x = following
