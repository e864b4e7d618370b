"""`nvfp4_expand` on NVIDIA GPUs: every thread and step writes 16 bytes.

A block has seven non-zero magnitudes. They are scaled, rounded and packed into two
registers once; each code then picks its byte with PRMT, whose selector is the code.
Loads and stores of a warp are contiguous, and a row stays in registers between the
search for its largest magnitude and its expansion.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

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

# Threads per warp, and warps per block.
WARP = 32
WARPS = 4
# Steps after which a row is shared by a whole block instead of one warp.
MAX_STEPS = 8
# Adding 1.5 * 2^23 rounds a small float to an integer, ties to even, in its low bits.
ROUNDING = 1.5 * 2.0**23
# Steps whose codes a thread may hold in registers.
MOST_STEPS = 16


def _i32() -> ir.Type:
    return ir.IntegerType.get_signless(32)


def _load_byte(memory: Memory, offset: I32) -> I32:
    i8 = ir.IntegerType.get_signless(8)
    wide = arith.extui(ir.IntegerType.get_signless(64), offset.value)
    pointer = utils.getelementptr(memory.pointer, [wide], i8)
    return I32(arith.extui(_i32(), llvm.load(i8, pointer, alignment=1)))


def _highest_bit(word: I32) -> I32:
    """Index of the highest bit that is set; there is one."""
    return I32(utils.inline_ptx("bfind.u32 $0, $1;", word.value, result_types=_i32()))


def _to_float(number: I32) -> F32:
    return F32(arith.uitofp(ir.F32Type.get(), number.value))


def _pick(table: Sequence[I32 | int], codes: I32) -> I32:
    """The bytes of an eight-byte table that four nibbles choose."""
    return lanes.permute_bytes(I32.of(table[0]), I32.of(table[1]), codes)


def _twice_largest_magnitude(words: Sequence[I32]) -> F32:
    """Twice the largest E2M1 magnitude among the codes of a block, as float32.

    Every code becomes a byte with one bit set; the highest bit of their union is the
    largest code.
    """
    halves = [half for word in words for half in (word, word >> 16)]
    union = lanes.tree(
        [_pick((0x08040201, 0x80402010), half & 0x7777) for half in halves],
        I32.__or__,
    )
    union = union | (union >> 16)
    union = (union | (union >> 8)) & 0xFF
    doubled = _pick((0x03020100, 0x0C080604), _highest_bit(union)) & 0xFF
    return _to_float(doubled)


def _expand_int8(
    words: Sequence[I32], step: F32, inverse: F32, *, saturate: bool
) -> list[I32]:
    """round(code * step * inverse) as int8, four values per word.

    Args:
        words: eight codes each.
        step: block scale times tensor scale.
        inverse: one over the row's scale.
        saturate: whether values beyond 127 are possible.
    """
    # Powers of two are exact, so two products serve all seven magnitudes.
    one, three_halves = step * inverse, (step * 1.5) * inverse
    rounded = []
    for base, factor in (
        (one, 0.5),
        (one, 1.0),
        (three_halves, 1.0),
        (one, 2.0),
        (three_halves, 2.0),
        (one, 4.0),
        (three_halves, 4.0),
    ):
        if saturate:
            base = base.minimum(int8.INT8_MAX / factor)
        rounded.append(base.fma(factor, ROUNDING).bits())
    table = (
        lanes.pack_bytes([I32.of(0), *rounded[:3]]),
        lanes.pack_bytes(rounded[3:]),
    )
    out = []
    for word in words:
        flipped = word ^ 0x88888888
        for shift in (0, 16):
            # A selector with its top bit set replicates the sign of the byte, which is
            # 0 here: so the sign bit of a code switches its byte off.
            plus = _pick(table, word >> shift if shift else word)
            minus = _pick(table, flipped >> shift if shift else flipped)
            # Four subtractions at once: 128 keeps every byte from borrowing.
            out.append((plus + 0x80808080 - minus) ^ 0x80808080)
    return out


def _expand_bfloat16(words: Sequence[I32], step: F32) -> list[I32]:
    """code * step as bfloat16, two values per word."""
    values = [step * v for v in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)]
    pairs = [
        lanes.pack_bf16(low, high)
        for low, high in zip(values[0::2], values[1::2], strict=True)
    ]
    low = [lanes.permute_bytes(pairs[i], pairs[i + 1], 0x6420) for i in (0, 2)]
    high = [lanes.permute_bytes(pairs[i], pairs[i + 1], 0x7531) for i in (0, 2)]
    out = []
    for word in words:
        for half in (word, word >> 16):
            low_bytes = _pick(low, half & 0x7777)
            high_bytes = _pick(high, half & 0x7777)
            signs = _pick((0x8000, 0), (half >> 3) & 0x1111)
            high_bytes = high_bytes | signs
            out.append(lanes.permute_bytes(low_bytes, high_bytes, 0x5140))
            out.append(lanes.permute_bytes(low_bytes, high_bytes, 0x7362))
    return out


@dataclasses.dataclass(frozen=True)
class _Rows:
    """How the threads of one block of four warps share rows.

    Attributes:
        rows: rows in all.
        rows_per_entry: rows that share a tensor scale.
        k: elements per row.
        elements: neighbouring elements of a thread and step: 16 bytes of output.
    """

    rows: int
    rows_per_entry: int
    k: int
    elements: int

    @property
    def threads(self) -> int:
        """Threads per row: a warp, or the whole block for long rows."""
        units = self.k // self.elements
        return WARP if units <= WARP * MAX_STEPS else WARP * WARPS

    @property
    def per_block(self) -> int:
        """Rows per block."""
        return WARP * WARPS // self.threads

    @property
    def steps(self) -> int:
        """Steps a thread takes to walk its row."""
        return math.ceil(self.k // self.elements / self.threads)


def _row_amax(amax: F32, layout: _Rows, scratch: Memory) -> F32:
    """The largest value of a row's threads; NaN if any of them is NaN."""
    distance = 1
    while distance < WARP:
        amax = amax.maximum(lanes.exchange(amax, distance))
        distance *= 2
    if layout.threads == WARP:
        return amax
    warp = lanes.thread_index() // WARP
    scratch.store(warp * 4, [amax.bits()])
    lanes.barrier()
    parts = scratch.load(I32.of(0), WARPS)
    return lanes.tree([part.as_float() for part in parts], F32.maximum)


def _work(
    block_index: I32,
    codes: Memory,
    block_scales: Memory,
    tensor_scale: Memory,
    given: Memory | None,
    out: Memory,
    out_scales: Memory | None,
    scratch: Memory,
    layout: _Rows,
) -> None:
    """What one thread does."""
    thread = lanes.thread_index()
    lane = thread % layout.threads
    row = block_index * layout.per_block + thread // layout.threads
    exists = row < layout.rows
    row = lanes.select(exists, row, I32.of(0))
    elements = layout.elements
    units = layout.k // elements
    words_per_unit = elements // 8
    loaded = []
    for step in range(layout.steps):
        unit = lane + step * layout.threads
        inside = unit < units
        if (step + 1) * layout.threads > units:
            unit = lanes.select(inside, unit, I32.of(0))
        place = row * units + unit
        words = codes.load(place * (elements // 2), words_per_unit)
        scale = _load_byte(block_scales, place // (BLOCK // elements))
        loaded.append((place, inside, words, scale))
    entry = I32.of(0)
    if layout.rows_per_entry < layout.rows:
        entry = row // layout.rows_per_entry
    tensor = tensor_scale.load(entry * 4, 1)[0].as_float()
    scales = [lanes.decode_e4m3(scale)[0] for *_, scale in loaded]
    inverse = None
    if given is not None:
        inverse = lanes.ptx_f32("rcp.rz.f32", given.load(row * 4, 1)[0].as_float())
    elif out_scales is not None:
        amax = lanes.tree(
            [
                _twice_largest_magnitude(words) * scale.abs()
                for (_, _, words, _), scale in zip(loaded, scales, strict=True)
            ],
            F32.maximum,
        )
        amax = _row_amax(amax, layout, scratch) * (tensor * 0.5)
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
    for (place, inside, words, _), scale in zip(loaded, scales, strict=True):
        step = scale * tensor

        def write(place=place, words=words, step=step):
            expanded = (
                _expand_bfloat16(words, step)
                if inverse is None
                else _expand_int8(words, step, inverse, saturate=given is not None)
            )
            out.store(place * 16, expanded)

        lanes.when(lanes.both(exists, inside), write)


def _run(
    codes: jax.Array,
    block_scales: jax.Array,
    tensor_scale: jax.Array,
    scales: jax.Array | None,
    *,
    to_int8: bool,
) -> list[jax.Array]:
    """Values `[rows, K]` and, where they are computed, scales `[rows]`."""
    *lead, n, half = codes.shape
    k = 2 * half
    entries = math.prod(lead)
    rows = entries * n
    layout = _Rows(rows, n, k, BLOCK if to_int8 else BLOCK // 2)
    limit = layout.elements * WARP * WARPS * MOST_STEPS
    reasons = []
    if k % BLOCK or not 0 < k <= limit:
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
            written = memories[len(inputs) : -1]
            _work(
                I32(index.registers.item()),
                memories[0],
                memories[1],
                memories[2],
                memories[3] if scales is not None else None,
                written[0],
                written[1] if len(written) > 1 else None,
                memories[-1],
                layout,
            )

        work(lax.axis_index("rows"), *refs)

    run = plgpu.kernel(
        kernel,
        out_type=tuple(outputs),
        scratch_types=(plgpu.SMEM((WARPS,), jnp.float32),),
        grid=(math.ceil(rows / layout.per_block),),
        grid_names=("rows",),
        kernel_name=f"nvfp4_expand_{'int8' if to_int8 else 'bfloat16'}",
    )
    return list(run(*inputs))


def expand_int8(
    codes: jax.Array,
    block_scales: jax.Array,
    tensor_scale: jax.Array,
    scales: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """int8 values and scales; see `nvfp4_expand.api`.

    Raises:
        NotImplementedError: K not a multiple of 16 or too large, or more than 2^32
            bytes of output.
    """
    *lead, n, half = codes.shape
    values, *found = _run(codes, block_scales, tensor_scale, scales, to_int8=True)
    used = found[0].reshape(*lead, n) if scales is None else scales
    return values.reshape(*lead, n, 2 * half), used


def expand_bfloat16(
    codes: jax.Array, block_scales: jax.Array, tensor_scale: jax.Array
) -> jax.Array:
    """bfloat16 values; see `nvfp4_expand.api`.

    Raises:
        NotImplementedError: as `expand_int8`.
    """
    (values,) = _run(codes, block_scales, tensor_scale, None, to_int8=False)
    return values.reshape(*codes.shape[:-1], 2 * codes.shape[-1])
