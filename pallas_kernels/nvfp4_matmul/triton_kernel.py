"""The Triton kernel of `triton.py`; importing it needs the extra `triton`."""

# Triton names the dimensions of a kernel in capitals, and reads its source as text.

import triton  # pyrefly: ignore
import triton.language as tl  # pyrefly: ignore


@triton.jit
def nvfp4_sums(
    x_ptr,
    x_scale_ptr,
    w_ptr,
    w_scale_ptr,
    out_ptr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[m, n] = sum_k of E2M1 times E4M3 on both sides, float32."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_exists, column_exists = rows[:, None] < M, columns[:, None] < N
    pairs, blocks = tl.arange(0, BLOCK_K // 2), tl.arange(0, BLOCK_K // 16)
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        half, sixteenth = k // 2 + pairs, k // 16 + blocks
        x = tl.load(
            x_ptr + rows[:, None] * (K // 2) + half[None, :],
            mask=row_exists & (half[None, :] < K // 2),
            other=0,
        )
        w = tl.load(
            w_ptr + columns[:, None] * (K // 2) + half[None, :],
            mask=column_exists & (half[None, :] < K // 2),
            other=0,
        )
        x_scale = tl.load(
            x_scale_ptr + rows[:, None] * (K // 16) + sixteenth[None, :],
            mask=row_exists & (sixteenth[None, :] < K // 16),
            other=0.0,
        )
        w_scale = tl.load(
            w_scale_ptr + columns[:, None] * (K // 16) + sixteenth[None, :],
            mask=column_exists & (sixteenth[None, :] < K // 16),
            other=0.0,
        )
        sums = tl.dot_scaled(x, x_scale, "e2m1", w.T, w_scale, "e2m1", sums)
    inside = row_exists & (columns[None, :] < N)
    tl.store(out_ptr + rows[:, None] * N + columns[None, :], sums, mask=inside)
