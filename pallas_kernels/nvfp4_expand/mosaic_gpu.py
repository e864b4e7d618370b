"""`nvfp4_expand` on NVIDIA GPUs: one warp per row, one block of 16 per lane and step.

A block has seven non-zero magnitudes. They are scaled, rounded and packed into two
registers once; each code then picks its byte with PRMT, whose selector is the code.
Loads and stores of a warp are contiguous, and a row stays in registers between the
search for its largest magnitude and its expansion.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental.mosaic.gpu import utils
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm

from pallas_kernels.numerics import bits, int8
from pallas_kernels.numerics.nvfp4 import BLOCK
from pallas_kernels.row_tiles import lanes
from pallas_kernels.row_tiles.lanes import F32, I32, Memory

WARPS = 4
# Adding 1.5 * 2^23 rounds a small float to an integer, ties to even, in its low bits.
ROUNDING = 1.5 * 2.0**23
# Blocks a lane may hold in registers: rows of up to 16,384 elements.
MAX_BLOCKS_PER_LANE = 32


def _i32() -> ir.Type:
    return ir.IntegerType.get_signless(32)


def _permute(low: I32, high: I32 | int, selector: I32 | int) -> I32:
    """Four bytes of the eight in (low, high), chosen by the selector's nibbles."""
    operands = [I32.of(v).value for v in (low, high, selector)]
    return I32(
        utils.inline_ptx("prmt.b32 $0, $1, $2, $3;", *operands, result_types=_i32())
    )


def _load_byte(memory: Memory, offset: I32) -> I32:
    i8 = ir.IntegerType.get_signless(8)
    wide = arith.extui(ir.IntegerType.get_signless(64), offset.value)
    pointer = utils.getelementptr(memory.pointer, [wide], i8)
    return I32(arith.extui(_i32(), llvm.load(i8, pointer, alignment=1)))


def _decode_e4m3(code: I32) -> F32:
    """The float32 of an E4M3 byte, subnormals and NaN included."""
    return F32(
        utils.inline_ptx(
            "{ .reg .b16 code, l, h; .reg .b32 pair;"
            " cvt.u16.u32 code, $1;"
            " cvt.rn.f16x2.e4m3x2 pair, code;"
            " mov.b32 {l, h}, pair;"
            " cvt.f32.f16 $0, l; }",
            code.value,
            result_types=ir.F32Type.get(),
        )
    )


def _largest_magnitude(words: list[I32]) -> F32:
    """The largest E2M1 magnitude among the 16 codes of a block, as float32.

    Works on eight nibbles at once: bit by bit from the top, if any candidate has the
    bit, those without it drop out.
    """
    a, b = words
    code = I32.of(0)
    for bit in (4, 2, 1):
        mask = 0x11111111 * bit
        with_a, with_b = a & mask, b & mask
        some = arith.cmpi(
            arith.CmpIPredicate.ne, (with_a | with_b).value, I32.of(0).value
        )
        code = code | lanes.select(some, I32.of(bit), I32.of(0))
        if bit > 1:
            # Spread the found bit over the lower bits of its nibble and keep those.
            keep_a, keep_b = with_a >> 1, with_b >> 1
            if bit == 4:
                keep_a, keep_b = keep_a | (with_a >> 2), keep_b | (with_b >> 2)
            a = lanes.select(some, a & keep_a, a)
            b = lanes.select(some, b & keep_b, b)
    doubled = _permute(I32.of(0x03020100), 0x0C080604, code) & 0xFF
    return F32(arith.uitofp(ir.F32Type.get(), doubled.value)) * 0.5


def _selectors(words: list[I32]) -> list[tuple[I32, I32]]:
    """(magnitude selector, sign selector) of each four codes of a block."""
    return [
        ((half & 0x7777), (half >> 3) & 0x1111)
        for word in words
        for half in (word, word >> 16)
    ]


def _expand_int8(words: list[I32], step: F32, inverse: F32) -> list[I32]:
    """The block's 16 values as int8: round(code * step * inverse), four per word."""
    # Powers of two are exact, so two products serve all seven magnitudes.
    one, three_halves = step * inverse, (step * 1.5) * inverse
    rounded = [
        base.minimum(int8.INT8_MAX / factor).fma(factor, ROUNDING).bits()
        for base, factor in (
            (one, 0.5),
            (one, 1.0),
            (three_halves, 1.0),
            (one, 2.0),
            (three_halves, 2.0),
            (one, 4.0),
            (three_halves, 4.0),
        )
    ]
    positive = (
        lanes.pack_bytes([I32.of(0), *rounded[:3]]),
        lanes.pack_bytes(rounded[3:]),
    )
    # Four negations at once: 128 - x borrows nothing, and its top bit flips back.
    negative = [(I32.of(0x80808080) - word) ^ 0x80808080 for word in positive]
    out = []
    for magnitude, sign in _selectors(words):
        plus = _permute(positive[0], positive[1], magnitude)
        minus = _permute(negative[0], negative[1], magnitude)
        mask = _permute(I32.of(0xFF00), 0, sign)
        out.append(plus ^ ((plus ^ minus) & mask))
    return out


def _expand_bfloat16(words: list[I32], step: F32) -> list[I32]:
    """The block's 16 values as bfloat16, two per word."""
    values = [step * v for v in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)]
    pairs = [
        lanes.pack_bf16(low, high)
        for low, high in zip(values[0::2], values[1::2], strict=True)
    ]
    low = [_permute(pairs[i], pairs[i + 1], 0x6420) for i in (0, 2)]
    high = [_permute(pairs[i], pairs[i + 1], 0x7531) for i in (0, 2)]
    out = []
    for magnitude, sign in _selectors(words):
        low_bytes = _permute(low[0], low[1], magnitude)
        high_bytes = _permute(high[0], high[1], magnitude)
        high_bytes = high_bytes | _permute(I32.of(0x8000), 0, sign)
        out.append(_permute(low_bytes, high_bytes, 0x5140))
        out.append(_permute(low_bytes, high_bytes, 0x7362))
    return out


def _work(
    block_index: I32,
    codes: Memory,
    block_scales: Memory,
    tensor_scale: Memory,
    given: Memory | None,
    out: Memory,
    out_scales: Memory | None,
    *,
    rows: int,
    rows_per_entry: int,
    k: int,
) -> None:
    """What one thread does."""
    thread = lanes.thread_index()
    lane = thread % lanes.WARP
    row = block_index * WARPS + thread // lanes.WARP
    exists = row < rows
    row = lanes.select(exists, row, I32.of(0))
    blocks = k // BLOCK
    steps = math.ceil(blocks / lanes.WARP)
    loaded = []
    for step in range(steps):
        block = lane + step * lanes.WARP
        inside = block < blocks
        if (step + 1) * lanes.WARP > blocks:
            block = lanes.select(inside, block, I32.of(0))
        words = codes.load(row * (k // 2) + block * (BLOCK // 2), 2)
        scale = _load_byte(block_scales, row * blocks + block)
        loaded.append((block, inside, words, scale))
    entry = row // rows_per_entry if rows_per_entry < rows else I32.of(0)
    tensor = tensor_scale.load(entry * 4, 1)[0].as_float()
    scales = [_decode_e4m3(scale) for *_, scale in loaded]
    to_int8 = out_scales is not None or given is not None
    inverse = None
    if given is not None:
        scale = given.load(row * 4, 1)[0].as_float()
        inverse = lanes.ptx_f32("rcp.rz.f32", scale)
    elif out_scales is not None:
        amax = lanes.tree(
            [
                _largest_magnitude(words) * scale.abs()
                for (_, _, words, _), scale in zip(loaded, scales, strict=True)
            ],
            F32.maximum,
        )
        distance = 1
        while distance < lanes.WARP:
            amax = amax.maximum(lanes.exchange(amax, distance))
            distance *= 2
        amax = amax * tensor
        finite = amax < math.inf
        amax = lanes.select(finite, amax, F32.of(0.0))
        amax = amax.maximum(bits.SMALLEST_SCALE).minimum(bits.LARGEST_SCALE)
        inverse = lanes.ptx_f32("rcp.rz.f32", amax) * int8.INT8_MAX
        result = lanes.select(finite, amax * (1.0 / int8.INT8_MAX), F32.of(math.nan))
        scales = [lanes.select(finite, scale, F32.of(0.0)) for scale in scales]
        lanes.when(
            lanes.both(exists, lane.equals(0)),
            lambda: out_scales.store(row * 4, [result.bits()]),
        )
    bytes_per_block = BLOCK if to_int8 else 2 * BLOCK
    for (block, inside, words, _), scale in zip(loaded, scales, strict=True):
        step = scale * tensor

        def write(block=block, words=words, step=step):
            if inverse is not None:
                expanded = _expand_int8(words, step, inverse)
            else:
                expanded = _expand_bfloat16(words, step)
            base = (row * blocks + block) * bytes_per_block
            for i in range(0, len(expanded), 4):
                out.store(base + I32.of(4 * i), expanded[i : i + 4])

        lanes.when(lanes.both(exists, inside), write)


def nvfp4_expand(
    codes: jax.Array,
    block_scales: jax.Array,
    tensor_scale: jax.Array,
    *,
    to: str,
    scales: jax.Array | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Expands stored NVFP4; see `nvfp4_expand.api`.

    Raises:
        NotImplementedError: K not a multiple of 16 or above 16,384, or more than 2^32
            bytes of output.
    """
    *lead, n, half = codes.shape
    k = 2 * half
    entries = math.prod(lead)
    rows = entries * n
    to_int8 = to == "int8"
    reasons = []
    if k % BLOCK or not 0 < k <= BLOCK * lanes.WARP * MAX_BLOCKS_PER_LANE:
        limit = BLOCK * lanes.WARP * MAX_BLOCKS_PER_LANE
        reasons.append(f"K must be a multiple of {BLOCK} up to {limit}, found {k}")
    if rows == 0:
        reasons.append(f"no rows: codes have shape {codes.shape}")
    if rows * k * (1 if to_int8 else 2) >= 1 << 32:
        reasons.append(f"{rows} x {k} values do not fit 32-bit byte offsets")
    if reasons:
        raise NotImplementedError("mosaic_gpu nvfp4_expand: " + "; ".join(reasons))
    inputs = [
        codes.reshape(rows, half),
        # Pointwise code must not see an 8-bit float.
        lax.bitcast_convert_type(block_scales, jnp.uint8).reshape(rows, k // BLOCK),
        tensor_scale.astype(jnp.float32).reshape(entries),
    ]
    if scales is not None:
        inputs.append(scales.astype(jnp.float32).reshape(rows))
    dtype = jnp.int8 if to_int8 else jnp.bfloat16
    outputs = [jax.ShapeDtypeStruct((rows, k), dtype)]
    if to_int8 and scales is None:
        outputs.append(jax.ShapeDtypeStruct((rows,), jnp.float32))

    def kernel(*refs):
        @plgpu.inline_mgpu(
            arg_types=(plgpu.Layout.WG_SPLAT(()), *(plgpu.RefType() for _ in refs))
        )
        def work(_, index, *operands):
            memories = [Memory.of(ref) for ref in operands]
            given = memories[3] if scales is not None else None
            written = memories[len(inputs) :]
            _work(
                I32(index.registers.item()),
                *memories[:3],
                given,
                written[0],
                written[1] if len(written) > 1 else None,
                rows=rows,
                rows_per_entry=n,
                k=k,
            )

        work(lax.axis_index("rows"), *refs)

    run = plgpu.kernel(
        functools.partial(kernel),
        out_type=tuple(outputs),
        grid=(math.ceil(rows / WARPS),),
        grid_names=("rows",),
        kernel_name=f"nvfp4_expand_{to}",
    )
    values, *found = run(*inputs)
    values = values.reshape(*lead, n, k)
    if not to_int8:
        return values
    return values, (found[0].reshape(*lead, n) if found else scales)
