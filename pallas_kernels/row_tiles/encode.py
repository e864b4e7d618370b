"""INT8 and NVFP4 of one thread's 64 values, both ways, in registers."""

import dataclasses
import functools
from collections.abc import Sequence

from pallas_kernels.numerics import bits, e2m1, nvfp4
from pallas_kernels.row_tiles import lanes
from pallas_kernels.row_tiles.lanes import F32, I32, ROUNDER
from pallas_kernels.row_tiles.loop import Tile
from pallas_kernels.row_tiles.tiling import BLOCK

INFINITY = float("inf")
NAN = float("nan")
E2M1_SCALE = 1.0 / (e2m1.E2M1_MAX * bits.E4M3_MAX)
# What makes E2M1's subnormal numbers those of float16.
CODE_SCALE = 2.0**-14
# A magnitude of as many steps would round to a code beyond the last one.
MOST_STEPS = 7.0


def largest(values: Sequence[F32]) -> F32:
    """max|v|, NaN if any is NaN."""
    return lanes.tree([v.abs() for v in values], F32.maximum)


def encode_int8(
    values: Sequence[F32], amax: F32, norm: float = 1.0
) -> tuple[list[I32], F32]:
    """`numerics.int8.quantize` of norm * values.

    Args:
      values: the values of this thread.
      amax: the largest magnitude of the whole row, norm included.
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


def code_word(values: Sequence[F32], inverse: F32) -> I32:
    """E2M1 codes of eight values in one word, the first in the low nibble.

    With the exponents of float16 shifted so that its subnormal numbers are those of
    E2M1, the bits of a float16 are E2M1 codes with nine more mantissa bits: a sign, two
    bits of exponent and one of mantissa at 15 and 11..9. Conversions cut off what does
    not fit, so the top byte of a float16 still tells on which side of a boundary the
    product lies; adding half a code, its lowest bit, rounds. Ties go away from zero.

    Args:
      values: eight, of magnitudes below 7 times their step.
      inverse: `CODE_SCALE` / step.
    """

    def tops(i: int) -> I32:
        """The top bytes of the float16 of values i, i + 2, i + 4, i + 6."""
        a, b, c, d = (value * inverse for value in values[i::2])
        first, second = lanes.pack_f16_down(a, b), lanes.pack_f16_down(c, d)
        return lanes.permute_bytes(first, second, 0x7531)

    even, odd = tops(0), tops(1)
    low = lanes.merge(0x08080808, even >> 4, (even + 0x01010101) >> 1)
    high = lanes.merge(0x80808080, odd, (odd << 3) + 0x08080808)
    return lanes.merge(0x0F0F0F0F, low, high)


def encode_nvfp4(
    values: Sequence[F32], tensor_scale: F32, norm: float = 1.0
) -> tuple[list[I32], I32]:
    """`numerics.nvfp4.quantize` of norm * values, 64 values as four blocks.

    Against the definition, a value within one part in 2^22 of a rounding boundary may
    get the neighbouring code.

    Returns:
      The codes, eight per word, and the four block scales in one word.
    """
    reciprocal = lanes.ptx_f32("rcp.rz.f32", tensor_scale * e2m1.E2M1_MAX)
    blocks = [values[i : i + nvfp4.BLOCK] for i in range(0, len(values), nvfp4.BLOCK)]
    largests = [largest(block) for block in blocks]
    wanted = []
    for amax in largests:
        scale = (amax * norm * reciprocal).maximum(bits.E4M3_SMALLEST)
        wanted.append(lanes.select(amax < INFINITY, scale, F32.of(NAN)))
    low, first, second = lanes.round_e4m3(wanted[0], wanted[1])
    high, third, fourth = lanes.round_e4m3(wanted[2], wanted[3])
    steps = [scale * tensor_scale for scale in (first, second, third, fourth)]
    # The norm goes into the step instead of every value.
    inverses = [
        lanes.ptx_f32("rcp.approx.ftz.f32", step) * (CODE_SCALE * norm)
        for step in steps
    ]
    inside = functools.reduce(
        lanes.both,
        (
            amax * inverse < CODE_SCALE * MOST_STEPS
            for amax, inverse in zip(largests, inverses, strict=True)
        ),
    )
    parts = [*(v for block in blocks for v in block), *inverses]

    def saturated() -> list[F32]:
        """Values within 6 steps; zeros of either sign where a scale is NaN."""
        found, finite = [], []
        for block, step, inverse in zip(blocks, steps, inverses, strict=True):
            valid = step < INFINITY
            most = lanes.select(valid, step * (e2m1.E2M1_MAX / norm), F32.of(0.0))
            found += [lanes.limit(v, most) for v in block]
            finite.append(lanes.select(valid, inverse, F32.of(0.0)))
        return found + finite

    # Only under a given tensor scale, or where a block's scale is subnormal or NaN.
    *values, a, b, c, d = lanes.unless(inside, saturated, parts)
    words = []
    for i, inverse in enumerate((a, b, c, d)):
        block = values[i * nvfp4.BLOCK : (i + 1) * nvfp4.BLOCK]
        words += [code_word(block[:8], inverse), code_word(block[8:], inverse)]
    return words, low | (high << 16)


def decode_code_word(word: I32) -> list[I32]:
    """The eight codes of a word as float16 values * `CODE_SCALE`.

    Returns:
      Values 0, 2; 4, 6; 1, 3 and 5, 7, two per word.
    """
    # The top byte of such a float16: its sign and three more bits of a code.
    even = ((word << 4) & 0x80808080) | ((word << 1) & 0x0E0E0E0E)
    odd = (word & 0x80808080) | ((word >> 3) & 0x0E0E0E0E)
    return [
        lanes.permute_bytes(tops, I32.of(0), order)
        for tops in (even, odd)
        for order in (0x1404, 0x3424)
    ]


@dataclasses.dataclass(frozen=True)
class DecodedBlock:
    """A block of 16 values, step * float16.

    Attributes:
      halves: of the eight values of each half, in the order of `decode_code_word`.
      step: float32.
    """

    halves: tuple[list[I32], list[I32]]
    step: F32

    def magnitudes(self) -> F32:
        """The sum of |v|; of the float16 it is exact."""
        total = lanes.tree([*self.halves[0], *self.halves[1]], lanes.add_magnitudes_f16)
        low, high = lanes.unpack_f16(total)
        return (low + high) * self.step

    def subtracted_from(self, values: Sequence[F32]) -> list[F32]:
        """Each of 16 other values minus the one of this block."""
        found, step = list(values), -self.step
        for first, words in zip((0, 8), self.halves, strict=True):
            for i, word in zip((0, 4, 1, 5), words, strict=True):
                low, high = lanes.unpack_f16(word)
                for j, value in ((first + i, low), (first + i + 2, high)):
                    found[j] = value.fma(step, values[j])
        return found


def decode_nvfp4(
    words: Sequence[I32], block_scales: I32, tensor_scale: F32
) -> list[DecodedBlock]:
    """E2M1 * block_scale * tensor_scale of every code."""
    scales = [
        *lanes.decode_e4m3(block_scales),
        *lanes.decode_e4m3(block_scales >> 16),
    ]
    halves = [decode_code_word(word) for word in words]
    return [
        DecodedBlock(
            (halves[2 * i], halves[2 * i + 1]),
            scale * tensor_scale * (1.0 / CODE_SCALE),
        )
        for i, scale in enumerate(scales)
    ]


def row_tensor_scale(amax: F32) -> F32:
    """The second-level scale of a row of its own; NaN if the row is not finite."""
    scale = (amax * E2M1_SCALE).maximum(bits.SMALLEST_SCALE)
    scale = scale.minimum(bits.LARGEST_SCALE)
    dropped = 24 - nvfp4.TENSOR_SCALE_BITS
    kept = (scale.bits() + (1 << (dropped - 1))) & (0xFFFFFFFF & ~((1 << dropped) - 1))
    return lanes.select(amax < INFINITY, kept.as_float(), F32.of(NAN))


def store_block_scales(tile: Tile, operand: int, scales: I32) -> None:
    """Stores a thread's block scales, one per run, into a raw output [M, K/16].

    The four lanes of a block transpose their bytes: lane q gets all those of run q.
    """
    quarter = tile.quarter
    for distance, unset, is_set in ((2, 0x5410, 0x3276), (1, 0x6240, 0x3715)):
        order = lanes.select(
            (quarter & distance).equals(0), I32.of(unset), I32.of(is_set)
        )
        other = lanes.exchange(scales, distance)
        scales = lanes.permute_bytes(scales, other, order)
    i = quarter // 2
    row = tile.global_row * (tile.tiling.channels // nvfp4.BLOCK)
    offset = row + tile.block(i) * (BLOCK // nvfp4.BLOCK) + (quarter % 2) * 4
    lanes.when(
        lanes.both(tile.exists(), tile.holds(i)),
        lambda: tile.raw_outputs[operand].store(offset, [scales]),
    )


def load_block_scales(tile: Tile, operand: int) -> I32:
    """The counterpart of `store_block_scales`, from a raw input."""
    row = tile.row_index() * (tile.tiling.channels // nvfp4.BLOCK)
    order = tile.quarter * 0x11 + 0x40
    pairs = []
    for i in range(2):
        start = tile.channel(2 * i) // BLOCK * (BLOCK // nvfp4.BLOCK)
        low, high = tile.raw_inputs[operand].load(row + start, 2)
        pairs.append(lanes.permute_bytes(low, high, order))
    return lanes.permute_bytes(pairs[0], pairs[1], 0x5410)
