"""What stands in front of an activation's quantization, in registers.

LayerNorm, the modulation x * (1 + scale) + shift, GELU and the block Hadamard, in
float32 from the input to the quantization.
"""

import dataclasses
import math
import operator

import jax

from pallas_kernels.row_tiles import lanes
from pallas_kernels.row_tiles.lanes import CHANNELS, F32, I32
from pallas_kernels.row_tiles.loop import Tile

# Slots of Tile.reduce_row
SUM, SQUARES, AMAX = range(3)
SLOTS = 3
ROTATION = 128


@dataclasses.dataclass(frozen=True)
class Front:
    """The front end of one site.

    Attributes:
      layer_norm: whether rows are normalised first.
      eps: of the LayerNorm.
      affine: whether raw input 0 holds factors and addends: uint32 [variants, K], a
        float16 factor in the low half and a float16 addend in the high half;
        y = x * factor + addend. All rows of a tile read them from the L1 cache, and
        float16 halves that traffic; it rounds eight times finer than bfloat16.
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


def scratch_words(tile_warps: int, rows: int) -> int:
    """Words of scratch that the front end and one amax need."""
    return SLOTS * tile_warps * rows


def _normalise(tile: Tile, values: list[F32], eps: float) -> list[F32]:
    """LayerNorm without its affine map.

    Variance as mean square minus squared mean: with bfloat16 values in float32 sums
    the cancellation stays below the rounding of the input.
    """
    scale = 1.0 / tile.tiling.channels
    sums, squares = [F32.of(0.0)] * 4, [F32.of(0.0)] * 4
    for i, v in enumerate(values):
        sums[i % 4] = sums[i % 4] + v
        squares[i % 4] = v.fma(v, squares[i % 4])
    total, square = tile.reduce_row(
        [lanes.tree(sums, operator.add), lanes.tree(squares, operator.add)],
        operator.add,
        SUM,
    )
    mean = total * scale
    variance = (square * scale - mean * mean).maximum(0.0)
    inverse = lanes.ptx_f32("rsqrt.approx.f32", variance + eps)
    offset = -(mean * inverse)
    return [v.fma(inverse, offset) for v in values]


def _variant(tile: Tile, front: Front) -> I32:
    """Which row of the factors and addends this thread's row uses."""
    if not front.rows_per_batch:
        return I32.of(0)
    row = tile.row_index()
    batch = row // front.rows_per_batch
    video = lanes.select(
        row % front.rows_per_batch < front.text_rows, I32.of(0), I32.of(1)
    )
    return batch * 2 + video


def _affine_words(tile: Tile, front: Front) -> list[I32]:
    """This thread's factors and addends, packed."""
    segment = lanes.select(tile.active, tile.segment, I32.of(0))
    start = (_variant(tile, front) * tile.tiling.channels + segment * CHANNELS) * 4
    return [
        word
        for i in range(0, CHANNELS, 4)
        for word in tile.raw_inputs[0].load(start, 4, i * 4)
    ]


def gelu(x: F32) -> F32:
    """GELU in its tanh form, as x times a logistic of twice the tanh's argument."""
    cubic = (x * x).fma(0.044715, 1.0) * x
    scale = -2.0 * math.sqrt(2.0 / math.pi) * math.log2(math.e)
    power = lanes.ptx_f32("ex2.approx.ftz.f32", cubic * scale)
    return x * lanes.ptx_f32("rcp.approx.ftz.f32", power + 1.0)


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


def rotated_values(tile: Tile, front: Front) -> tuple[list[F32], float]:
    """This thread's 64 values behind the front end.

    Returns:
      values and the factor that is still to be applied to them (the norm of the
      Hadamard matrix).
    """
    values = [x for word in tile.load(0) for x in lanes.unpack_bf16(word)]
    # Loaded before the norm's barrier, which hides their latency.
    words = _affine_words(tile, front) if front.affine else []
    if front.layer_norm:
        values = _normalise(tile, values, front.eps)
    if front.affine:
        values = [
            v.fma(*lanes.unpack_f16(word))
            for v, word in zip(values, words, strict=True)
        ]
    if front.gelu:
        values = [gelu(v) for v in values]
    if front.stats:
        _write_stats(tile, values)
    if not front.rotation:
        return values, 1.0
    upper = (tile.segment & 1).equals(1)
    values = lanes.hadamard_across(lanes.hadamard(values), tile.tiling.rows, upper)
    return values, ROTATION**-0.5


def stats_shape(tiles: int, warps: int) -> jax.ShapeDtypeStruct:
    """The raw output of a front end with statistics."""
    return jax.ShapeDtypeStruct((tiles, warps, 2), "float32")
