"""Runs the row kernels' per-thread code in NumPy, one array element per thread.

The bodies of `pallas_kernels.row_tiles` build MLIR through the few operations of
`row_tiles.lanes`; here those operations compute on NumPy arrays instead. All threads of
a block advance together, so that barriers have nothing to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from pallas_kernels.norm_rope import loop as head_loop
from pallas_kernels.row_tiles import encode, front, lanes, loop
from tests.pallas_kernels.lane_values import Float, Int

_MASKS: list[np.ndarray] = []


def _truncated_reciprocal(x):
    with np.errstate(all="ignore"):
        exact = 1.0 / x.value.astype(np.float64)
        rounded = exact.astype(np.float32)
        above = np.abs(rounded.astype(np.float64)) > np.abs(exact)
        return Float(np.where(above, np.nextafter(rounded, np.float32(0)), rounded))


def _quiet(function):
    def run(x):
        with np.errstate(all="ignore"):
            return Float(function(x.value.astype(np.float64)))

    return run


def _smaller_magnitude(a, b):
    """The other operand where one is NaN; the sign is the product's."""
    signs = np.signbit(a.value) ^ np.signbit(b.value)
    magnitude = np.fmin(np.abs(a.value), np.abs(b.value))
    return Float(np.where(signs, -magnitude, magnitude))


INSTRUCTIONS: dict[str, Callable] = {
    "min.xorsign.abs.f32": _smaller_magnitude,
    "rcp.rz.f32": _truncated_reciprocal,
    "rcp.rn.f32": _quiet(lambda x: 1.0 / x),
    "rcp.approx.ftz.f32": _quiet(lambda x: 1.0 / x),
    "ex2.approx.ftz.f32": _quiet(np.exp2),
    "rsqrt.approx.f32": _quiet(lambda x: 1.0 / np.sqrt(x)),
    "rsqrt.approx.ftz.f32": _quiet(lambda x: 1.0 / np.sqrt(x)),
}


class Bytes:
    """Stands for `lanes.Memory`: a buffer of bytes that all threads address."""

    def __init__(self, array: np.ndarray):
        self.data = array.reshape(-1).view(np.uint8)

    def _indices(self, offset, words, constant):
        start = Int.of(offset).value.astype(np.int64) + constant
        assert not np.any(start % (4 * words)), "a misaligned access"
        return start[..., None] + np.arange(4 * words)

    def load(self, offset, words, constant=0):
        loaded = self.data[self._indices(offset, words, constant)].view(np.uint32)
        return [Int(loaded[..., i].copy()) for i in range(words)]

    def store(self, offset, words, constant=0):
        indices = self._indices(offset, len(words), constant)
        shape = indices.shape[:-1]
        rows = [np.broadcast_to(word.value, shape) for word in words]
        values = np.stack(rows, -1).astype(np.uint32).view(np.uint8)
        mask = np.logical_and.reduce(
            [np.broadcast_to(m, shape) for m in (*_MASKS, np.bool_(True))]
        )
        self.data[indices[mask]] = values[mask]


def _when(condition, action):
    _MASKS.append(condition)
    action()
    _MASKS.pop()


def _exchange(value, distance):
    return type(value)(value.value[np.arange(value.value.size) ^ distance])


def _permute_bytes(low, high, order):
    low, high, order = np.broadcast_arrays(low.value, high.value, Int.of(order).value)
    both = np.stack([low, high], -1).view(np.uint8).reshape(*low.shape, 8)
    nibbles = np.stack([(order >> (4 * i)) & 15 for i in range(4)], -1)
    picked = np.take_along_axis(both, (nibbles & 7).astype(np.int64), -1)
    signs = np.where(picked >> 7, np.uint8(255), np.uint8(0))
    picked = np.where(nibbles >> 3, signs, picked)
    return Int(np.ascontiguousarray(picked).view(np.uint32)[..., 0])


def _to_bits(values, dtype, kind):
    with np.errstate(all="ignore"):
        return np.asarray(values.value.astype(dtype)).view(kind).astype(np.uint32)


def _packed(dtype):
    def run(low, high):
        parts = [_to_bits(v, dtype, np.uint16) for v in (low, high)]
        return Int(parts[0] | parts[1] << 16)

    return run


def _truncated_f16(value):
    """Bits of float16, rounded towards zero, subnormal numbers kept."""
    with np.errstate(all="ignore"):
        nearest = value.value.astype(np.float16)
        above = np.abs(nearest.astype(np.float32)) > np.abs(value.value)
        below = np.nextafter(nearest, np.float16(0))
    bits = np.where(above, below, nearest).view(np.uint16).astype(np.uint32)
    return np.where(np.isnan(value.value), np.uint32(0x7FFF), bits)


HALVES = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}


def _halves(word, kind):
    return [_from_bits(word, s, 0xFFFF, np.uint16, HALVES[kind]) for s in (0, 16)]


def _fma_f16(a, b, c):
    parts = zip(*(_halves(word, "f16") for word in (a, b, c)), strict=True)
    return _packed(np.float16)(*(x.fma(y, z) for x, y, z in parts))


def _add_magnitudes_f16(a, b):
    parts = zip(_halves(a, "f16"), _halves(b, "f16"), strict=True)
    return _packed(np.float16)(*(x.abs() + y.abs() for x, y in parts))


def _unless(condition, action, values):
    """Both branches run: what they write to memory is nobody's."""
    pairs = zip(values, action(), strict=True)
    return [Float(np.where(condition, yes.value, no.value)) for yes, no in pairs]


def _matrix_product(kind, a, b, c=()):
    """The layout of PTX: lane 4 g + q."""

    def columns(words):  # [warps, g, q, word, half]
        halves = [
            [np.broadcast_to(h.value, a[0].value.shape) for h in _halves(word, kind)]
            for word in words
        ]
        return np.stack(halves, 0).transpose(2, 0, 1).reshape(-1, 8, 4, len(words), 2)

    left, right = columns(a), columns(b)
    # A: word w is row g + 8 (w % 2), column 2 q + half + 8 (w // 2)
    left = left.reshape(-1, 8, 4, 2, 2, 2)
    rows = left.transpose(0, 4, 1, 3, 2, 5).reshape(-1, 16, 16)
    # B: word w is row 2 q + half + 8 w, column g
    inner = right.transpose(0, 3, 2, 4, 1).reshape(-1, 16, 8)
    with np.errstate(invalid="ignore"):
        product = np.einsum("wik,wkj->wij", rows, inner)  # exact but for long sums
    # C: value 2 r + half is row g + 8 r, column 2 q + half
    cells = product.reshape(-1, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3).reshape(4, -1)
    added = [value.value for value in c] or [np.float32(0)] * 4
    return [Float(cell + one) for cell, one in zip(cells, added, strict=True)]


def _from_bits(word, shift, mask, kind, dtype):
    return Float(((word.value >> shift) & mask).astype(kind).view(dtype))


def _e4m3(word, shift):
    return _from_bits(word, shift, 0xFF, np.uint8, ml_dtypes.float8_e4m3fn)


def _round_e4m3(low, high):
    capped = [Float(np.minimum(v.value, 448.0)) for v in (low, high)]
    parts = [_to_bits(v, ml_dtypes.float8_e4m3fn, np.uint8) for v in capped]
    word = Int(parts[0] | parts[1] << 8)
    return word, _e4m3(word, 0), _e4m3(word, 8)


REPLACED = {
    "I32": Int,
    "F32": Float,
    "select": lambda c, yes, no: type(yes)(np.where(c, yes.value, no.value)),
    "both": np.logical_and,
    "ptx_f32": lambda name, *operands: INSTRUCTIONS[name](*operands),
    "barrier": lambda: None,
    "when": _when,
    "exchange": _exchange,
    "permute_bytes": _permute_bytes,
    "pack_bf16": _packed(ml_dtypes.bfloat16),
    "pack_f16": _packed(np.float16),
    "unpack_f16": lambda w: tuple(_halves(w, "f16")),
    "pack_f16_down": lambda low, high: Int(
        _truncated_f16(low) | _truncated_f16(high) << 16
    ),
    "fma_f16": _fma_f16,
    "add_magnitudes_f16": _add_magnitudes_f16,
    "merge": lambda mask, yes, no: (yes & mask) | (no & (mask ^ 0xFFFFFFFF)),
    "unless": _unless,
    "matrix_product": _matrix_product,
    "round_e4m3": _round_e4m3,
    "decode_e4m3": lambda w: (_e4m3(w, 0), _e4m3(w, 8)),
}


@contextlib.contextmanager
def emulated(monkeypatch, *modules):
    """Inside, the tile loops of the given kernel modules run in NumPy."""
    with monkeypatch.context() as patch:
        for name, replacement in REPLACED.items():
            for module in (lanes, loop, head_loop, encode, front, *modules):
                if hasattr(module, name):
                    patch.setattr(module, name, replacement)
        for module in modules:
            for loop_name, runner in (
                ("row_kernel", row_kernel),
                ("head_kernel", head_kernel),
            ):
                if hasattr(module, loop_name):
                    patch.setattr(module, loop_name, runner)
        yield


def _swizzle(units: np.ndarray, width: int) -> np.ndarray:
    """Bytes [count, rows, width] as the copy engine lays them out."""
    flat = units.reshape(-1)
    at = np.arange(flat.size // 16) * 16
    swizzled = at ^ (((at >> 7) & (width // 16 - 1)) << 4)
    return flat.reshape(-1, 16)[swizzled // 16].reshape(-1)


def row_kernel(
    body,
    *,
    name,
    tiling,
    inputs: Sequence,
    raw_inputs=(),
    outputs=(),
    exchanged,
):
    """Same contract as `row_tiles.row_kernel`."""
    del name
    rows, total = tiling.rows, inputs[0].shape[0]
    units = [loop.Units.of(x) for x in inputs]
    sources = [np.asarray(x).view(np.uint8).reshape(total, -1) for x in inputs]
    results = [np.zeros(x.shape, x.dtype) for x in outputs]
    threads = np.arange(tiling.warpgroups * 128, dtype=np.uint32)
    tile = loop.Tile(
        tiling=tiling,
        rows_total=total,
        index=Int(0),
        thread=Int(threads),
        words=(),
        raw_inputs=tuple(Bytes(np.asarray(x).copy()) for x in raw_inputs),
        raw_outputs=tuple(Bytes(result) for result in results),
        scratch=Bytes(np.full(max(1, exchanged * tiling.warps * rows), np.nan, "f4")),
        scratch_start=Int(0),
    )
    for index in range(-(-total // rows)):
        words = []
        for source, unit in zip(sources, units, strict=True):
            padded = unit.padded_count(rows) * unit.swizzle
            loaded = np.zeros((rows, padded), np.uint8)
            here = source[index * rows : (index + 1) * rows]
            loaded[: len(here), : source.shape[1]] = here
            by_unit = loaded.reshape(rows, -1, unit.swizzle).transpose(1, 0, 2)
            memory = Bytes(_swizzle(by_unit, unit.swizzle))
            per_run = unit.words_per_run(tiling.channels)
            words.append(tile.read(memory, unit.swizzle, per_run))
        body(dataclasses.replace(tile, index=Int(index), words=tuple(words)))
    return tuple(jnp.asarray(result) for result in results)


def head_kernel(body, *, name, x, table, raw_inputs, outputs):
    """Same contract as `norm_rope.loop.head_kernel`."""
    del name
    batch, tokens, heads, head_dim = x.shape
    rows, parts = head_loop.tokens_of(head_dim), head_dim // 64
    raw = tuple(Bytes(np.array(array)) for array in raw_inputs)
    results = [np.zeros(output.shape, output.dtype) for output in outputs]
    written = tuple(map(Bytes, results))
    lanes_of_block = Int(np.arange(head_loop.WARPGROUPS * head_loop.THREADS))
    warpgroup = lanes_of_block // head_loop.THREADS
    x_bytes = np.array(x).view(np.uint8).reshape(batch, tokens, -1)
    table_bytes = None
    if table is not None:
        table_bytes = np.array(table).view(np.uint8).reshape(tokens, -1)

    def unit(rows_of_array, block, first):
        """Swizzled units of a head, zero beyond the end."""
        cut = rows_of_array[block * rows : (block + 1) * rows]
        cut = cut[:, first * 128 : (first + parts) * 128]
        filled = np.zeros((rows, parts * 128), np.uint8)
        filled[: cut.shape[0], : cut.shape[1]] = cut
        units = filled.reshape(rows, parts, 128).transpose(1, 0, 2)
        return _swizzle(np.ascontiguousarray(units), 128)

    def read(memory, i, j):
        return head_loop.read_words(memory, lanes_of_block, head_dim, i, j)

    def read_heads(units, i, j):
        found = [read(Bytes(one), i, j) for one in units]
        return [
            Int(np.choose(warpgroup.value, [word[part].value for word in found]))
            for part in range(4)
        ]

    step = 0
    groups = range(0, heads, head_loop.WARPGROUPS)
    for entry in range(batch):
        for block in range(-(-tokens // rows)):
            for first in groups:
                here = range(first, first + head_loop.WARPGROUPS)
                units = [unit(x_bytes[entry], block, h * parts) for h in here]
                shared = None
                if table_bytes is not None:
                    shared = Bytes(unit(table_bytes, block, 0))
                body(
                    head_loop.HeadTile(
                        shape=x.shape,
                        batch=Int(entry),
                        block=Int(block),
                        head=warpgroup + first,
                        thread=lanes_of_block,
                        step=Int(step),
                        words=[
                            [
                                word
                                for j in range(head_dim // 32)
                                for word in read_heads(units, i, j)
                            ]
                            for i in range(256 // head_dim)
                        ],
                        table=shared and functools.partial(read, shared),
                        raw_inputs=raw,
                        raw_outputs=written,
                        scratch=Bytes(np.zeros(256, np.uint32)),
                    )
                )
                step += 1
    return tuple(map(jnp.asarray, results))
