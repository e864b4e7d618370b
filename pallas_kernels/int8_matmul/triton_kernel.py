"""The Triton kernel of `triton.py`; importing it needs the extra `triton`."""

# Triton names the dimensions of a kernel in capitals, and reads its source as text.

import triton  # pyrefly: ignore
import triton.language as tl  # pyrefly: ignore

from pallas_kernels.triton_backend.arithmetic import gelu_tanh  # pyrefly: ignore


@triton.jit
def _finish(
    sums,
    rows,
    columns,
    x_scale_ptr,
    w_scale_ptr,
    bias_ptr,
    residual_ptr,
    gate_ptr,
    text_gate_ptr,
    out_ptr,
    M: tl.constexpr,
    N: tl.constexpr,
    ROWS_PER_ENTRY: tl.constexpr,
    TEXT_ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_GATE: tl.constexpr,
    GATE_STRIDE: tl.constexpr,
    TEXT_GATE_STRIDE: tl.constexpr,
):
    """The epilogue of some columns of a tile."""
    row, column = tl.minimum(rows, M - 1), tl.minimum(columns, N - 1)
    x_scale = tl.load(x_scale_ptr + row)
    w_scale = tl.load(w_scale_ptr + column)
    y = sums.to(tl.float32) * x_scale[:, None] * w_scale[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + column).to(tl.float32)[None, :]
    if GELU:
        y = gelu_tanh(y)
    if HAS_GATE:
        if GATE_STRIDE == 0 and TEXT_GATE_STRIDE == 0:
            gate = tl.load(gate_ptr + column).to(tl.float32)[None, :]
            if TEXT_ROWS > 0:
                text = tl.load(text_gate_ptr + column).to(tl.float32)[None, :]
                is_text = row % ROWS_PER_ENTRY < TEXT_ROWS
                gate = tl.where(is_text[:, None], text, gate)
        else:
            entry = (row // ROWS_PER_ENTRY)[:, None]
            gate = tl.load(gate_ptr + entry * GATE_STRIDE + column[None, :])
            gate = gate.to(tl.float32)
            if TEXT_ROWS > 0:
                places = entry * TEXT_GATE_STRIDE + column[None, :]
                text = tl.load(text_gate_ptr + places).to(tl.float32)
                is_text = row % ROWS_PER_ENTRY < TEXT_ROWS
                gate = tl.where(is_text[:, None], text, gate)
        y *= gate
    exists = (rows < M)[:, None] & (columns < N)[None, :]
    places = row.to(tl.int64)[:, None] * N + columns[None, :]
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + places, mask=exists, other=0.0).to(tl.float32)
    tl.store(out_ptr + places, y.to(out_ptr.dtype.element_ty), mask=exists)


@triton.jit
def int8_matmul(
    x_ptr,
    x_scale_ptr,
    w_ptr,
    w_scale_ptr,
    bias_ptr,
    residual_ptr,
    gate_ptr,
    text_gate_ptr,
    out_ptr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS_PER_ENTRY: tl.constexpr,
    TEXT_ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_GATE: tl.constexpr,
    GATE_STRIDE: tl.constexpr,
    TEXT_GATE_STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PARTS: tl.constexpr,
):
    """out = (x w^T) * x_scale * w_scale and its epilogue; see `int8_matmul`.

    GATE_STRIDE is the distance of two batch entries' gates, 0 if they share one.
    """
    # Programs that run together share rows of x and of w in the L2 cache.
    tiles_m, tiles_n = (M + BLOCK_M - 1) // BLOCK_M, (N + BLOCK_N - 1) // BLOCK_N
    index = tl.program_id(0)
    group = index // (GROUP_M * tiles_n)
    first = group * GROUP_M
    height = min(tiles_m - first, GROUP_M)
    inside = index % (GROUP_M * tiles_n)
    rows = (first + inside % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    tile_n = inside // height
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)

    # Rows that do not exist read the last that does, and are not stored.
    x_rows = tl.minimum(rows, M - 1).to(tl.int64)
    w_rows = tl.minimum(columns, N - 1).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + x_rows[:, None] * K + k[None, :]
    w_ptrs = w_ptr + w_rows[None, :] * K + k[:, None]
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            x = tl.load(x_ptrs)
            w = tl.load(w_ptrs)
        else:
            x = tl.load(x_ptrs, mask=k[None, :] < K - start, other=0)
            w = tl.load(w_ptrs, mask=k[:, None] < K - start, other=0)
        sums = tl.dot(x, w, sums, out_dtype=tl.int32)
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K

    # In parts, so that operands of the epilogue fit the registers beside the sums.
    width: tl.constexpr = BLOCK_N // PARTS
    if PARTS == 2:
        split = tl.permute(tl.reshape(sums, (BLOCK_M, 2, width)), (0, 2, 1)).split()
    else:
        split = (sums,)
    for i in tl.static_range(PARTS):
        some = split[i]
        some_columns = tile_n * BLOCK_N + i * width + tl.arange(0, width)
        _finish(
            some,
            rows,
            some_columns,
            x_scale_ptr,
            w_scale_ptr,
            bias_ptr,
            residual_ptr,
            gate_ptr,
            text_gate_ptr,
            out_ptr,
            M,
            N,
            ROWS_PER_ENTRY,
            TEXT_ROWS,
            HAS_BIAS,
            GELU,
            HAS_RESIDUAL,
            HAS_GATE,
            GATE_STRIDE,
            TEXT_GATE_STRIDE,
        )
