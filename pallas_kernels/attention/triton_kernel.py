"""The Triton kernel of `triton.py`; importing it needs the extra `triton`."""

# Triton names the dimensions of a kernel in capitals, and reads its source as text.

import triton  # pyrefly: ignore
import triton.language as tl  # pyrefly: ignore

# With a fixed reference point, probabilities are smaller by this many powers of two:
# room for later blocks to exceed the first. Float32 and bfloat16 lose no precision.
_HEADROOM = tl.constexpr(40.0)
# A row sum from which on the fixed reference point counts as overflown: 2^100.
_SUM_LIMIT = tl.constexpr(1.2676506002282294e30)
# Row sums are kept as partial sums of this many columns, which one thread has.
_SUM_COLUMNS = tl.constexpr(8)


@triton.jit
def _exponents(
    q,
    q_factor,
    k_ptrs,
    k_scale_ptr,
    start,
    length,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SCALE_TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
):
    """(products, their factor) for BLOCK_N keys; -inf products where keys are hidden.

    The softmax is over 2 ^ (product * factor).
    """
    columns = start + tl.arange(0, BLOCK_N)
    offsets = start * (HEADS * HEAD_DIM)
    if MASKED:
        k = tl.load(k_ptrs + offsets, mask=(columns < length)[None, :], other=0.0)
    else:
        k = tl.load(k_ptrs + offsets)
    factor = q_factor
    if SCALE_TOKENS == 0:
        s = tl.dot(q, k)
    else:
        s = tl.dot(q, k, out_dtype=tl.int32).to(tl.float32)
        if SCALE_TOKENS % BLOCK_N == 0:
            factor = q_factor * tl.load(k_scale_ptr + start // SCALE_TOKENS)
        else:
            last = tl.minimum(columns, length - 1)
            s *= tl.load(k_scale_ptr + last // SCALE_TOKENS)[None, :]
    if MASKED:
        s = tl.where((columns < length)[None, :], s, float("-inf"))
    return s, factor


@triton.jit
def _step(
    acc,
    sums,
    largest,
    q,
    q_factor,
    k_ptrs,
    v_ptrs,
    k_scale_ptr,
    start,
    length,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SCALE_TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    ONLINE: tl.constexpr,
):
    """One block of keys: their probabilities into the sums, times values into acc."""
    s, factor = _exponents(
        q,
        q_factor,
        k_ptrs,
        k_scale_ptr,
        start,
        length,
        HEADS,
        HEAD_DIM,
        SCALE_TOKENS,
        BLOCK_N,
        MASKED,
    )
    if ONLINE:
        before = largest
        largest = tl.maximum(before, tl.max(s, 1) * factor)
        shrink = tl.exp2(before - largest)
        acc *= shrink[:, None]
        sums *= shrink[:, None]
    p = tl.exp2(s * factor[:, None] - largest[:, None])
    block_m: tl.constexpr = p.shape[0]
    sums += tl.sum(tl.reshape(p, (block_m, BLOCK_N // _SUM_COLUMNS, _SUM_COLUMNS)), 1)
    offsets = start * (HEADS * HEAD_DIM)
    if MASKED:
        columns = start + tl.arange(0, BLOCK_N)
        v = tl.load(v_ptrs + offsets, mask=(columns < length)[:, None], other=0.0)
    else:
        v = tl.load(v_ptrs + offsets)
    acc = tl.dot(p.to(v.dtype), v, acc)
    return acc, sums, largest


@triton.jit
def _attend(
    q,
    q_factor,
    k_ptrs,
    v_ptrs,
    k_scale_ptr,
    length,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SCALE_TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ONLINE: tl.constexpr,
):
    """All blocks of keys; returns acc and the rows' sums."""
    acc = tl.zeros((BLOCK_M, HEAD_DIM), dtype=tl.float32)
    sums = tl.zeros((BLOCK_M, _SUM_COLUMNS), dtype=tl.float32)
    if ONLINE:
        largest = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    else:
        s, factor = _exponents(
            q,
            q_factor,
            k_ptrs,
            k_scale_ptr,
            length * 0,
            length,
            HEADS,
            HEAD_DIM,
            SCALE_TOKENS,
            BLOCK_N,
            True,
        )
        largest = tl.max(s, 1) * factor + _HEADROOM
    whole = length - length % BLOCK_N
    for start in range(0, whole, BLOCK_N):
        acc, sums, largest = _step(
            acc,
            sums,
            largest,
            q,
            q_factor,
            k_ptrs,
            v_ptrs,
            k_scale_ptr,
            start,
            length,
            HEADS,
            HEAD_DIM,
            SCALE_TOKENS,
            BLOCK_N,
            False,
            ONLINE,
        )
    if whole < length:
        acc, sums, largest = _step(
            acc,
            sums,
            largest,
            q,
            q_factor,
            k_ptrs,
            v_ptrs,
            k_scale_ptr,
            whole,
            length,
            HEADS,
            HEAD_DIM,
            SCALE_TOKENS,
            BLOCK_N,
            True,
            ONLINE,
        )
    return acc, tl.sum(sums, 1)


@triton.jit
def _attend_tile(
    q_ptr,
    k_ptr,
    v_ptr,
    q_scale_ptr,
    k_scale_ptr,
    length_ptr,
    out_ptr,
    Q_TOKENS: tl.constexpr,
    KV_TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    FACTOR: tl.constexpr,
    SCALE_TOKENS: tl.constexpr,
    SCALE_BLOCKS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ONLINE: tl.constexpr,
):
    """Writes the attention of this program's queries; returns the rows' sums."""
    tile, head = tl.program_id(0), tl.program_id(1)
    entry = (head // HEADS).to(tl.int64)
    row_size: tl.constexpr = HEADS * HEAD_DIM
    in_head = (head % HEADS) * HEAD_DIM
    channels = tl.arange(0, HEAD_DIM)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    # Rows that do not exist are the last that does, again.
    row = tl.minimum(rows, Q_TOKENS - 1)
    columns = tl.arange(0, BLOCK_N)

    q_places = row[:, None].to(tl.int64) * row_size + in_head + channels[None, :]
    q_places += entry * Q_TOKENS * row_size
    q = tl.load(q_ptr + q_places)
    kv = entry * KV_TOKENS * row_size + in_head
    k_ptrs = k_ptr + kv + columns[None, :] * row_size + channels[:, None]
    v_ptrs = v_ptr + kv + columns[:, None] * row_size + channels[None, :]
    if SCALE_TOKENS == 0:
        q_factor = tl.full((BLOCK_M,), FACTOR, dtype=tl.float32)
    else:
        q_factor = tl.load(q_scale_ptr + head.to(tl.int64) * Q_TOKENS + row)
        k_scale_ptr += head * SCALE_BLOCKS
    length = tl.full((), KV_TOKENS, dtype=tl.int32)
    if HAS_LENGTHS:
        length = tl.minimum(tl.load(length_ptr + entry), KV_TOKENS)
    acc, sums = _attend(
        q,
        q_factor,
        k_ptrs,
        v_ptrs,
        k_scale_ptr,
        length,
        HEADS,
        HEAD_DIM,
        SCALE_TOKENS,
        BLOCK_M,
        BLOCK_N,
        ONLINE,
    )
    out = (acc / sums[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + q_places, out, mask=(rows < Q_TOKENS)[:, None])
    return sums


@triton.jit
def attention(
    q_ptr,
    k_ptr,
    v_ptr,
    q_scale_ptr,
    k_scale_ptr,
    length_ptr,
    out_ptr,
    risen_ptr,
    Q_TOKENS: tl.constexpr,
    KV_TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    FACTOR: tl.constexpr,
    SCALE_TOKENS: tl.constexpr,
    SCALE_BLOCKS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ONLINE: tl.constexpr,
):
    """Softmax attention of BLOCK_M queries of one head.

    SCALE_TOKENS is 0 for 16-bit queries and keys, whose products times FACTOR are
    exponents of 2; otherwise they are INT8 with scales, and so many keys share one.
    Unless ONLINE, tiles with scores that rise far above those of the first block are
    marked, int32 [heads, tiles], and wrong: `attention_of_risen` has to follow.
    """
    sums = _attend_tile(
        q_ptr,
        k_ptr,
        v_ptr,
        q_scale_ptr,
        k_scale_ptr,
        length_ptr,
        out_ptr,
        Q_TOKENS,
        KV_TOKENS,
        HEADS,
        HEAD_DIM,
        FACTOR,
        SCALE_TOKENS,
        SCALE_BLOCKS,
        HAS_LENGTHS,
        BLOCK_M,
        BLOCK_N,
        ONLINE,
    )
    if not ONLINE:
        # NaN counts as risen.
        risen = tl.max(tl.where(sums < _SUM_LIMIT, 0, 1), 0)
        place = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        tl.store(risen_ptr + place, risen)


@triton.jit
def attention_of_risen(
    q_ptr,
    k_ptr,
    v_ptr,
    q_scale_ptr,
    k_scale_ptr,
    length_ptr,
    risen_ptr,
    before_ptr,
    out_ptr,
    Q_TOKENS: tl.constexpr,
    KV_TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    FACTOR: tl.constexpr,
    SCALE_TOKENS: tl.constexpr,
    SCALE_BLOCKS: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The tiles that `attention` marked again, as the textbook does it; others copied.

    A kernel of its own, for its registers: with both in one, Hopper's multiprocessors
    hold one program where they hold two of `attention`. It does not write in place
    because releases of jax-triton disagree on how that is asked for.
    """
    tile, head = tl.program_id(0), tl.program_id(1)
    if tl.load(risen_ptr + head * tl.num_programs(0) + tile) > 0:
        _attend_tile(
            q_ptr,
            k_ptr,
            v_ptr,
            q_scale_ptr,
            k_scale_ptr,
            length_ptr,
            out_ptr,
            Q_TOKENS,
            KV_TOKENS,
            HEADS,
            HEAD_DIM,
            FACTOR,
            SCALE_TOKENS,
            SCALE_BLOCKS,
            HAS_LENGTHS,
            BLOCK_M,
            BLOCK_N,
            True,
        )
    else:
        rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        channels = tl.arange(0, HEAD_DIM)
        row = (head // HEADS).to(tl.int64) * Q_TOKENS + rows
        places = row[:, None] * (HEADS * HEAD_DIM) + (head % HEADS) * HEAD_DIM
        places += channels[None, :]
        exists = (rows < Q_TOKENS)[:, None]
        tile_out = tl.load(before_ptr + places, mask=exists)
        tl.store(out_ptr + places, tile_out, mask=exists)
