"""What stands in front of an activation's quantization, in registers.

LayerNorm, the modulation x * (1 + scale) + shift, GELU and the block Hadamard. Sums and
transcendental functions are float32; the values enter the rotation with 16 bits, as
tensor cores take them: bfloat16 as they came, float16 behind a norm, bfloat16 behind
GELU.
"""

import dataclasses
import math
import operator
from typing import Literal

import jax

from pallas_kernels.row_tiles import lanes
from pallas_kernels.row_tiles.lanes import F32, I32
from pallas_kernels.row_tiles.loop import RUN, RUNS, Tile

# Slots of Tile.reduce_row
SUM, SQUARES, AMAX = range(3)
SLOTS = 3
ROTATION = 128
ONES = {"bf16": 0x3F803F80, "f16": 0x3C003C00}
SIGNS = 0x80008000

type Kind = Literal["bf16", "f16"]


@dataclasses.dataclass(frozen=True)
class Front:
    """The front end of one site.

    Attributes:
      layer_norm: whether rows are normalised first.
      eps: the epsilon of the LayerNorm.
      affine: whether raw input 0 holds factors and addends, float16 [variants, 2, K]:
        y = x * factor + addend. They come from the L1 cache for every tile; float16
        halves that traffic, multiplies two channels at once and rounds eight times
        finer than bfloat16.
      rows_per_batch: rows that share a pair of variants; 0 if all rows share one.
      text_rows: the first rows of each batch element that use its first variant.
      gelu: whether GELU (tanh) is applied.
      rotation: 128 or 0.
      stats: whether sum|x| and max|x| before the rotation are written to the last raw
        output, float32 [tiles, warps, 2].
    """

    layer_norm: bool = False
    eps: float = 1e-5
    affine: bool = False
    rows_per_batch: int = 0
    text_rows: int = 0
    gelu: bool = False
    rotation: int = ROTATION
    stats: bool = False


def unpack(words: list[I32], kind: Kind) -> list[F32]:
    """Values of packed words, float32."""
    one = lanes.unpack_bf16 if kind == "bf16" else lanes.unpack_f16
    return [value for word in words for value in one(word)]


def _pack(values: list[F32], kind: Kind) -> list[I32]:
    one = lanes.pack_bf16 if kind == "bf16" else lanes.pack_f16
    return [one(a, b) for a, b in zip(values[0::2], values[1::2], strict=True)]


def _row_moments(tile: Tile, words: list[I32], values: list[F32]) -> tuple[F32, F32]:
    """Sum, by the tensor cores, and sum of squares of the row."""
    ones = [I32.of(ONES["bf16"])] * 2
    sums: list[F32] = []
    for i in range(0, len(words), 4):
        sums = lanes.matrix_product("bf16", words[i : i + 4], ones, sums)
    squares = [F32.of(0.0)] * 4
    for i, v in enumerate(values):
        squares[i % 4] = v.fma(v, squares[i % 4])
    # All four lanes of a block hold its sum, one of them counts.
    first = tile.quarter.equals(0)
    total, square = tile.reduce_row(
        [
            lanes.select(first, sums[0] + sums[2], F32.of(0.0)),
            lanes.tree(squares, operator.add),
        ],
        operator.add,
        SUM,
    )
    return total, square


def _normalise(tile: Tile, words: list[I32], eps: float) -> list[F32]:
    """LayerNorm without its affine map.

    Variance as mean square minus squared mean: with bfloat16 values in float32 sums
    the cancellation stays below the rounding of the input.
    """
    scale = 1.0 / tile.tiling.channels
    values = unpack(words, "bf16")
    total, square = _row_moments(tile, words, values)
    mean = total * scale
    variance = (square * scale - mean * mean).maximum(0.0)
    inverse = lanes.ptx_f32("rsqrt.approx.ftz.f32", variance + eps)
    offset = -(mean * inverse)
    return [v.fma(inverse, offset) for v in values]


def _variant(tile: Tile, front: Front) -> I32:
    """Which pair of factors and addends this thread's row uses."""
    if not front.rows_per_batch:
        return I32.of(0)
    row = tile.row_index()
    batch = row // front.rows_per_batch
    video = lanes.select(
        row % front.rows_per_batch < front.text_rows, I32.of(0), I32.of(1)
    )
    return batch * 2 + video


def _affine_words(tile: Tile, front: Front) -> tuple[list[I32], list[I32]]:
    """This thread's factors and addends, two float16 per word."""
    row_bytes = 2 * tile.tiling.channels
    start = _variant(tile, front) * (2 * row_bytes)
    found: tuple[list[I32], list[I32]] = ([], [])
    for run in range(RUNS):
        offset = start + tile.channel(run) * 2
        for part, words in enumerate(found):
            for byte in (0, RUN):
                words += tile.raw_inputs[0].load(offset, 4, part * row_bytes + byte)
    return found


def gelu(x: F32, y: F32) -> tuple[F32, F32]:
    """GELU of two values in its tanh form: x times a logistic of twice its argument.

    Special functions are four times scarcer than multiplications, so two values share a
    reciprocal: 1 / a = b / (a b).
    """
    scale = -2.0 * math.sqrt(2.0 / math.pi) * math.log2(math.e)
    exponents = [(v * v).fma(0.044715 * scale, scale) * v for v in (x, y)]
    # The product of two stays finite, and x 2^-60 is as good as zero: NaN and Inf pass,
    # and the result is within 2^-20 for x above -2^40.
    exponents = [exponent.minimum(60.0) for exponent in exponents]
    a, b = (lanes.ptx_f32("ex2.approx.ftz.f32", v) + 1.0 for v in exponents)
    inverse = lanes.ptx_f32("rcp.approx.ftz.f32", a * b)
    return x * (inverse * b), y * (inverse * a)


def _write_stats(tile: Tile, values: list[F32]) -> None:
    zero = F32.of(0.0)
    exists = tile.exists()
    magnitudes = [v.abs() for v in values]
    total = lanes.select(exists, lanes.tree(magnitudes, operator.add), zero)
    largest = lanes.select(exists, lanes.tree(magnitudes, F32.maximum), zero)
    total = tile.reduce_warp(total, operator.add)
    largest = tile.reduce_warp(largest, F32.maximum)
    offset = (tile.index * tile.tiling.warps + tile.warp) * 8
    lanes.when(
        tile.lane.equals(0),
        lambda: tile.raw_outputs[-1].store(offset, [total.bits(), largest.bits()]),
    )


def _activation(tile: Tile, front: Front) -> tuple[list[I32], Kind]:
    """The values before the rotation, 16 bits each, and which 16 bits."""
    words, kind = tile.words[0], "bf16"
    operands = None
    # Ahead of the norm's barrier, so that nobody waits for them behind it; unless other
    # thread blocks have work meanwhile and want the registers.
    if front.affine and tile.tiling.blocks_per_sm == 1:
        operands = _affine_words(tile, front)
    if front.layer_norm:
        words = _pack(_normalise(tile, words, front.eps), "f16")
        kind = "f16"
    if front.affine:
        factors, addends = operands or _affine_words(tile, front)
        if kind == "f16":
            words = [
                lanes.fma_f16(x, factor, addend)
                for x, factor, addend in zip(words, factors, addends, strict=True)
            ]
        else:
            parts = (unpack(factors, "f16"), unpack(addends, "f16"))
            values = zip(unpack(words, kind), *parts, strict=True)
            words = _pack([x.fma(a, b) for x, a, b in values], kind)
    if front.gelu:
        values = unpack(words, kind)
        pairs = zip(values[0::2], values[1::2], strict=True)
        words = _pack([v for pair in pairs for v in gelu(*pair)], "bf16")
        kind = "bf16"
    # A norm and an addend make something of nothing.
    changed = front.layer_norm or front.affine
    return (tile.masked(words) if changed else words), kind


def _hadamard(tile: Tile, words: list[I32], kind: Kind) -> list[F32]:
    """The unnormalised transform of every block of 128 channels.

    Of the seven bits of a channel's index, 4 and 5 number the lanes of a block; the
    tensor cores contract those and bits 0 and 2. Their 16 rows are the eight blocks of
    a warp, twice: bit 1. So the four words that one load brings are a fragment as they
    are, and four values of a product are neighbours. Additions do bits 1, 3 and 6.
    """
    group, quarter = tile.lane // 4, tile.quarter
    across = quarter & (group >> 1)
    parity = (across ^ (across >> 1)) & 1
    # Entries of the two rows in a word of B: (-1)^parity, and bit 0 of row and column.
    first, second = parity << 15, (parity ^ (group & 1)) << 31
    plus = (first | second) ^ ONES[kind]
    minus = plus ^ SIGNS
    values = [
        value
        for i in range(0, len(words), 4)
        for b in ((plus, plus), (plus, minus))
        for value in lanes.matrix_product(kind, words[i : i + 4], b)
    ]
    runs = [values[i : i + RUN] for i in range(0, len(values), RUN)]
    for run in runs:
        for width in (2, 8):
            for i in range(RUN):
                if not i & width:
                    x, y = run[i], run[i + width]
                    run[i], run[i + width] = x + y, x - y
    for block in (0, 2):
        pairs = list(zip(runs[block], runs[block + 1], strict=True))
        runs[block] = [x + y for x, y in pairs]
        runs[block + 1] = [x - y for x, y in pairs]
    return [value for run in runs for value in run]


def rotated_values(tile: Tile, front: Front) -> tuple[list[F32], float]:
    """This thread's 64 values behind the front end, in channel order.

    Returns:
      values and the factor that is still to be applied to them (the norm of the
      Hadamard matrix).
    """
    words, kind = _activation(tile, front)
    if front.stats:
        _write_stats(tile, unpack(words, kind))
    if not front.rotation:
        return unpack(words, kind), 1.0
    return _hadamard(tile, words, kind), ROTATION**-0.5


def stats_shape(tiles: int, warps: int) -> jax.ShapeDtypeStruct:
    """The raw output of a front end with statistics."""
    return jax.ShapeDtypeStruct((tiles, warps, 2), "float32")
