"""INT8 and NVFP4 of one thread's 64 values, both ways, in registers."""

from collections.abc import Sequence

from pallas_kernels.numerics import bits, e2m1, nvfp4
from pallas_kernels.row_tiles import lanes
from pallas_kernels.row_tiles.lanes import F32, I32, ROUNDER
from pallas_kernels.row_tiles.loop import RUNS, Tile
from pallas_kernels.row_tiles.tiling import BLOCK

INFINITY = float("inf")
NAN = float("nan")
E2M1_SCALE = 1.0 / (e2m1.E2M1_MAX * bits.E4M3_MAX)
# Twice the magnitudes of the codes 0..3 and 4..7, a byte each.
DOUBLED = (0x03020100, 0x0C080604)


def largest(values: Sequence[F32]) -> F32:
    """max|v|, NaN if any is NaN."""
    return lanes.tree([v.abs() for v in values], F32.maximum)


def encode_int8(
    values: Sequence[F32], amax: F32, norm: float = 1.0
) -> tuple[list[I32], F32]:
    """`numerics.int8.quantize` of norm * values.

    Args:
      values: of this thread.
      amax: of the whole row, norm included.
      norm: a factor that the values still need.

    Returns:
      The bytes, four per word, and the row's scale.
    """
    valid = amax < INFINITY  # false for NaN as well
    kept = lanes.select(valid, amax, F32.of(0.0))
    kept = kept.maximum(bits.SMALLEST_SCALE).minimum(bits.LARGEST_SCALE)
    scale = lanes.select(valid, kept * (1.0 / 127.0), F32.of(NAN))
    inverse = lanes.ptx_f32("rcp.rz.f32", kept) * 127.0 * norm
    rounded = [v.fma(inverse, ROUNDER).bits() for v in values]
    none = I32.of(0)
    words = [
        lanes.select(valid, lanes.pack_bytes(rounded[i : i + 4]), none)
        for i in range(0, len(values), 4)
    ]
    return words, scale


def decode_int8(words: Sequence[I32], scale: F32) -> list[F32]:
    """value * scale of every byte."""
    values = []
    for word in words:
        # Offset binary, placed into the mantissa of 2^23.
        biased = word ^ 0x80808080
        for byte in range(4):
            placed = lanes.permute_bytes(biased, I32.of(0x4B000000), 0x7440 + byte)
            values.append((placed.as_float() - (2.0**23 + 128)) * scale)
    return values


def _magnitude_code(value: F32, half: F32) -> I32:
    """The E2M1 code of |value| / step in the low byte; half = 1 / (2 step).

    The code of a magnitude q is the nearest integer, ties to even, of the polygon
    through the code points, 4 sat(q/2) + 2 sat(q/2 - 1) + sat(q/2 - 2), where sat
    clamps to 0..1: every operation runs on the float32 pipe, which is twice as wide
    as the one for comparisons and integers. Adding onto ROUNDER rounds; the later
    terms are whole numbers wherever an earlier one was not saturated.
    """
    magnitude = value.abs()

    def clamped(offset: float) -> F32:
        return lanes.ptx_f32("fma.rn.sat.f32", magnitude, half, F32.of(offset))

    code = lanes.ptx_f32("mul.rn.sat.f32", magnitude, half).fma(4.0, ROUNDER)
    code = clamped(-1.0).fma(2.0, code)
    return (code + clamped(-2.0)).bits()


def code_word(values: Sequence[F32], half: F32) -> I32:
    """E2M1 codes of eight values in one word, the first in the low nibble."""
    codes = [_magnitude_code(value, half) for value in values]
    even, odd = (
        lanes.pack_bytes(codes[i::2]) | (lanes.sign_bytes(values[i::2]) & 0x08080808)
        for i in range(2)
    )
    return even | (odd << 4)


def encode_nvfp4(
    values: Sequence[F32], tensor_scale: F32, norm: float = 1.0
) -> tuple[list[I32], I32]:
    """`numerics.nvfp4.quantize` of norm * values, 64 values as four blocks.

    Against the definition, a value within one part in 2^23 of a rounding boundary may
    get the neighbouring code.

    Returns:
      The codes, eight per word, and the four block scales in one word.
    """
    inverse = lanes.ptx_f32("rcp.rz.f32", tensor_scale * e2m1.E2M1_MAX)
    blocks = [values[i : i + nvfp4.BLOCK] for i in range(0, len(values), nvfp4.BLOCK)]
    wanted = []
    for block in blocks:
        amax = largest(block) * norm
        scale = (amax * inverse).maximum(bits.E4M3_SMALLEST)
        wanted.append(lanes.select(amax < INFINITY, scale, F32.of(NAN)))
    low, first, second = lanes.round_e4m3(wanted[0], wanted[1])
    high, third, fourth = lanes.round_e4m3(wanted[2], wanted[3])
    words = []
    for block, scale in zip(blocks, (first, second, third, fourth), strict=True):
        # The norm goes into the step instead of every value.
        half = lanes.ptx_f32("rcp.rn.f32", scale * tensor_scale) * (0.5 * norm)
        words += [code_word(block[:8], half), code_word(block[8:], half)]
    return words, low | (high << 16)


def decode_nvfp4(
    words: Sequence[I32], block_scales: I32, tensor_scale: F32
) -> list[F32]:
    """E2M1 * block_scale * tensor_scale of every code."""
    scales = [
        *lanes.decode_e4m3(block_scales),
        *lanes.decode_e4m3(block_scales >> 16),
    ]
    low, high = (I32.of(table) for table in DOUBLED)
    values = []
    for i, word in enumerate(words):
        step = scales[i // 2] * tensor_scale * 0.5
        index = word & 0x77777777
        for half in range(2):
            doubled = lanes.permute_bytes(low, high, index >> (16 * half))
            for j in range(4):
                placed = lanes.permute_bytes(doubled, I32.of(0x4B000000), 0x7440 + j)
                magnitude = (placed.as_float() - 2.0**23) * step
                sign = (word << (28 - 4 * (4 * half + j))) & 0x80000000
                values.append((magnitude.bits() ^ sign).as_float())
    return values


def row_tensor_scale(amax: F32) -> F32:
    """The second-level scale of a row of its own; NaN if the row is not finite."""
    scale = (amax * E2M1_SCALE).maximum(bits.SMALLEST_SCALE)
    scale = scale.minimum(bits.LARGEST_SCALE)
    dropped = 24 - nvfp4.TENSOR_SCALE_BITS
    kept = (scale.bits() + (1 << (dropped - 1))) & (0xFFFFFFFF & ~((1 << dropped) - 1))
    return lanes.select(amax < INFINITY, kept.as_float(), F32.of(NAN))


def store_block_scales(tile: Tile, operand: int, scales: I32) -> None:
    """Stores a thread's block scales, one per run, into a raw output [M, K/16].

    The four lanes of a block put their bytes together; the first one stores.
    """
    words = []
    for run in range(RUNS):
        word = ((scales >> (8 * run)) & 0xFF) << (tile.quarter * 8)
        for distance in (1, 2):
            word = word | lanes.exchange(word, distance)
        words.append(word)
    row = tile.global_row * (tile.tiling.channels // nvfp4.BLOCK)
    stores = lanes.both(tile.exists(), tile.quarter.equals(0))
    for i in range(2):
        offset = row + tile.block(i) * (BLOCK // nvfp4.BLOCK)
        part = words[2 * i : 2 * i + 2]
        lanes.when(
            lanes.both(stores, tile.holds(i)),
            lambda offset=offset, part=part: tile.raw_outputs[operand].store(
                offset, part
            ),
        )


def load_block_scales(tile: Tile, operand: int) -> I32:
    """The counterpart of `store_block_scales`, from a raw input."""
    row = tile.row_index() * (tile.tiling.channels // nvfp4.BLOCK)
    scales = I32.of(0)
    for i in range(2):
        start = tile.channel(2 * i) // BLOCK * (BLOCK // nvfp4.BLOCK)
        for half, word in enumerate(tile.raw_inputs[operand].load(row + start, 2)):
            byte = (word >> (tile.quarter * 8)) & 0xFF
            scales = scales | (byte << (8 * (2 * i + half)))
    return scales
