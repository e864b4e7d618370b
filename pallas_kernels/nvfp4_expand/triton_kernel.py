"""The Triton kernel of `triton.py`; importing it needs the extra `triton`."""

# Triton names the dimensions of a kernel in capitals, and reads its source as text.

import triton  # pyrefly: ignore
import triton.language as tl  # pyrefly: ignore

from pallas_kernels.triton_backend.arithmetic import (  # pyrefly: ignore
    encode_int8,
    load_nvfp4,
    reciprocal,
    round_to_even,
)


@triton.jit
def nvfp4_expand(
    codes_ptr,
    block_scales_ptr,
    tensor_scale_ptr,
    given_ptr,
    values_ptr,
    scales_ptr,
    M: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    ROWS_PER_ENTRY: tl.constexpr,
    TO_INT8: tl.constexpr,
    GIVEN: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Rows of NVFP4 to bfloat16, or to INT8 with one scale each; see `nvfp4_expand`."""
    tiles = (M + ROWS - 1) // ROWS
    channels = tl.arange(0, K_PADDED)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        rows = tile * ROWS + tl.arange(0, ROWS)
        row = tl.minimum(rows, M - 1)
        tensor_scale = tl.load(tensor_scale_ptr + row // ROWS_PER_ENTRY)
        values = load_nvfp4(
            codes_ptr, block_scales_ptr, tensor_scale, row, ROWS, K, K_PADDED
        )
        exists = (rows < M)[:, None] & (channels < K)[None, :]
        places = row.to(tl.int64)[:, None] * K + channels[None, :]
        if TO_INT8:
            if GIVEN:
                inverse = reciprocal(tl.load(given_ptr + row))
                scaled = values * inverse[:, None]
                scaled = tl.where(scaled == scaled, scaled, 0.0)
                scaled = tl.minimum(tl.maximum(scaled, -127.0), 127.0)
                out = round_to_even(scaled).to(tl.int8)
            else:
                out, scales = encode_int8(values)
                tl.store(scales_ptr + rows, scales, mask=rows < M)
        else:
            out = values.to(tl.bfloat16)
        tl.store(values_ptr + places, out, mask=exists)
