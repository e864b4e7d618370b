"""The Triton kernel of `triton.py`; importing it needs the extra `triton`."""

# Triton names the dimensions of a kernel in capitals, and reads its source as text.

import triton  # pyrefly: ignore
import triton.language as tl  # pyrefly: ignore

from pallas_kernels.triton_backend.arithmetic import (  # pyrefly: ignore
    encode_int8,
    encode_nvfp4,
    load_nvfp4,
    row_tensor_scales,
)


@triton.jit
def block_stats(
    x_ptr,
    y_ptr,
    old_ptr,
    old_scale_ptr,
    old_block_scale_ptr,
    sums_ptr,
    delta_ptr,
    scale_ptr,
    block_scale_ptr,
    M: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    OLD: tl.constexpr,
    NEW: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Y - X of rows in its format, and their sums; see `block_stats`.

    OLD and NEW are formats: 16, 8 or 4 bits; OLD is 0 without an old delta.
    """
    tiles = (M + ROWS - 1) // ROWS
    channels = tl.arange(0, K_PADDED)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        rows = tile * ROWS + tl.arange(0, ROWS)
        row = tl.minimum(rows, M - 1)
        real, inside = rows < M, (channels < K)[None, :]
        exists = real[:, None] & inside
        places = row.to(tl.int64)[:, None] * K + channels[None, :]
        x = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + places, mask=inside, other=0.0).to(tl.float32)
        delta = y - x
        tl.store(sums_ptr + 4 * rows, tl.sum(tl.abs(delta), 1), mask=real)
        tl.store(sums_ptr + 4 * rows + 1, tl.sum(tl.abs(x), 1), mask=real)
        change, before = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
        if OLD > 0:
            if OLD == 4:
                old = load_nvfp4(
                    old_ptr,
                    old_block_scale_ptr,
                    tl.load(old_scale_ptr + row),
                    row,
                    ROWS,
                    K,
                    K_PADDED,
                )
            else:
                old = tl.load(old_ptr + places, mask=inside, other=0).to(tl.float32)
                if OLD == 8:
                    old *= tl.load(old_scale_ptr + row)[:, None]
            # Beyond K there is nothing, not the NaN of a row's scale.
            old = tl.where(inside, old, 0.0)
            change, before = tl.sum(tl.abs(delta - old), 1), tl.sum(tl.abs(old), 1)
        tl.store(sums_ptr + 4 * rows + 2, change, mask=real)
        tl.store(sums_ptr + 4 * rows + 3, before, mask=real)
        if NEW == 16:
            tl.store(delta_ptr + places, delta.to(tl.bfloat16), mask=exists)
        elif NEW == 8:
            values, scales = encode_int8(delta)
            tl.store(delta_ptr + places, values, mask=exists)
            tl.store(scale_ptr + rows, scales, mask=real)
        else:
            scales = row_tensor_scales(delta)
            codes, blocks = encode_nvfp4(delta, scales, ROWS, K_PADDED)
            pair, block = tl.arange(0, K_PADDED // 2), tl.arange(0, K_PADDED // 16)
            start = row.to(tl.int64)[:, None]
            tl.store(
                delta_ptr + start * (K // 2) + pair[None, :],
                codes,
                mask=real[:, None] & (pair < K // 2)[None, :],
            )
            tl.store(
                block_scale_ptr + start * (K // 16) + block[None, :],
                blocks,
                mask=real[:, None] & (block < K // 16)[None, :],
            )
            tl.store(scale_ptr + rows, scales, mask=real)
