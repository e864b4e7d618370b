"""Runs the row kernels' per-thread code in NumPy, one array element per thread.

The bodies of `pallas_kernels.row_tiles` build MLIR through the few operations of
`row_tiles.lanes`; here those operations compute on NumPy arrays instead. All threads of
a block advance together, so that barriers have nothing to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from pallas_kernels.row_tiles import encode, front, lanes, loop

_MASKS: list[np.ndarray] = []


def _words(value) -> np.ndarray:
    return np.asarray(value, np.uint32)


class Int:
    """Stands for `lanes.I32`."""

    def __init__(self, value):
        self.value = _words(value)

    @staticmethod
    def of(number):
        return number if isinstance(number, Int) else Int(number)

    def _apply(self, function, other):
        with np.errstate(over="ignore"):
            return Int(function(self.value, Int.of(other).value))

    __add__ = lambda self, other: self._apply(np.add, other)  # noqa: E731
    __sub__ = lambda self, other: self._apply(np.subtract, other)  # noqa: E731
    __mul__ = lambda self, other: self._apply(np.multiply, other)  # noqa: E731
    __floordiv__ = lambda self, other: self._apply(np.floor_divide, other)  # noqa: E731
    __mod__ = lambda self, other: self._apply(np.remainder, other)  # noqa: E731
    __and__ = lambda self, other: self._apply(np.bitwise_and, other)  # noqa: E731
    __or__ = lambda self, other: self._apply(np.bitwise_or, other)  # noqa: E731
    __xor__ = lambda self, other: self._apply(np.bitwise_xor, other)  # noqa: E731
    __lshift__ = lambda self, other: self._apply(np.left_shift, other)  # noqa: E731
    __rshift__ = lambda self, other: self._apply(np.right_shift, other)  # noqa: E731
    __lt__ = lambda self, other: self.value < Int.of(other).value  # noqa: E731

    def equals(self, other):
        return self.value == Int.of(other).value

    def as_float(self):
        return Float(self.value.view(np.float32))


class Float:
    """Stands for `lanes.F32`."""

    def __init__(self, value):
        self.value = np.asarray(value, np.float32)

    @staticmethod
    def of(number):
        return number if isinstance(number, Float) else Float(number)

    def _apply(self, function, other):
        with np.errstate(all="ignore"):
            return Float(function(self.value, Float.of(other).value))

    __add__ = lambda self, other: self._apply(np.add, other)  # noqa: E731
    __sub__ = lambda self, other: self._apply(np.subtract, other)  # noqa: E731
    __mul__ = lambda self, other: self._apply(np.multiply, other)  # noqa: E731
    __neg__ = lambda self: Float(-self.value)  # noqa: E731
    __gt__ = lambda self, other: self.value > Float.of(other).value  # noqa: E731
    __ge__ = lambda self, other: self.value >= Float.of(other).value  # noqa: E731
    __lt__ = lambda self, other: self.value < Float.of(other).value  # noqa: E731
    maximum = lambda self, other: self._apply(np.maximum, other)  # noqa: E731
    minimum = lambda self, other: self._apply(np.minimum, other)  # noqa: E731

    def abs(self):
        return Float(np.abs(self.value))

    def fma(self, factor, addend):
        factor, addend = Float.of(factor), Float.of(addend)
        with np.errstate(all="ignore"):
            # float64 holds the product exactly; the sum is rounded twice, rarely seen.
            exact = self.value.astype(np.float64) * factor.value + addend.value
            return Float(exact)

    def bits(self):
        return Int(np.broadcast_to(self.value, self.value.shape).copy().view(np.uint32))


def _saturated(x):
    return Float(np.nan_to_num(np.clip(x.value, 0.0, 1.0), nan=0.0))


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


INSTRUCTIONS: dict[str, Callable] = {
    "fma.rn.sat.f32": lambda a, b, c: _saturated(a.fma(b, c)),
    "mul.rn.sat.f32": lambda a, b: _saturated(a * b),
    "rcp.rz.f32": _truncated_reciprocal,
    "rcp.rn.f32": _quiet(lambda x: 1.0 / x),
    "rcp.approx.ftz.f32": _quiet(lambda x: 1.0 / x),
    "ex2.approx.ftz.f32": _quiet(np.exp2),
    "rsqrt.approx.f32": _quiet(lambda x: 1.0 / np.sqrt(x)),
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

    def store(self, offset, words):
        indices = self._indices(offset, len(words), 0)
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
    return Float(value.value[np.arange(value.value.size) ^ distance])


def _permute_bytes(low, high, order):
    low, high, order = np.broadcast_arrays(low.value, high.value, Int.of(order).value)
    both = np.stack([low, high], -1).view(np.uint8).reshape(*low.shape, 8)
    picks = np.stack([(order >> (4 * i)) & 7 for i in range(4)], -1).astype(np.int64)
    picked = np.take_along_axis(both, picks, -1)
    return Int(np.ascontiguousarray(picked).view(np.uint32)[..., 0])


def _to_bits(values, dtype, kind):
    with np.errstate(all="ignore"):
        return np.asarray(values.value.astype(dtype)).view(kind).astype(np.uint32)


def _pack_bf16(low, high):
    parts = [_to_bits(v, ml_dtypes.bfloat16, np.uint16) for v in (low, high)]
    return Int(parts[0] | parts[1] << 16)


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
    "pack_bf16": _pack_bf16,
    "unpack_f16": lambda w: tuple(
        _from_bits(w, s, 0xFFFF, np.uint16, np.float16) for s in (0, 16)
    ),
    "round_e4m3": _round_e4m3,
    "decode_e4m3": lambda w: (_e4m3(w, 0), _e4m3(w, 8)),
}


@contextlib.contextmanager
def emulated(monkeypatch, *modules):
    """Inside, `row_kernel` of the given kernel modules runs in NumPy."""
    with monkeypatch.context() as patch:
        for name, replacement in REPLACED.items():
            for module in (lanes, loop, encode, front, *modules):
                if hasattr(module, name):
                    patch.setattr(module, name, replacement)
        for module in modules:
            patch.setattr(module, "row_kernel", row_kernel)
        yield


def _swizzle(units: np.ndarray, width: int) -> np.ndarray:
    """Bytes [count, rows, width] as the copy engine lays them out, and back."""
    flat = units.reshape(-1)
    at = np.arange(flat.size // 16) * 16
    swizzled = at ^ (((at >> 7) & (width // 16 - 1)) << 4)
    return flat.reshape(-1, 16)[swizzled // 16].reshape(-1)


def _unit_bytes(row_bytes: int) -> int:
    return 128 if row_bytes % 128 == 0 else 64


def row_kernel(
    body,
    *,
    name,
    tiling,
    inputs: Sequence,
    raw_inputs=(),
    outputs=(),
    raw_outputs=(),
    scratch_words,
):
    """Same contract as `row_tiles.row_kernel`."""
    del name
    rows, threads = tiling.rows, tiling.warpgroups * 128
    total = inputs[0].shape[0]
    sources = [np.asarray(x).view(np.uint8).reshape(total, -1) for x in inputs]
    targets = [np.zeros((x.shape[0], x.shape[1]), x.dtype) for x in outputs]
    raw = [np.zeros(x.shape, x.dtype) for x in raw_outputs]
    raw_sources = [Bytes(np.asarray(x).copy()) for x in raw_inputs]
    scratch = Bytes(np.full(scratch_words, np.nan, np.float32))
    thread = np.arange(threads, dtype=np.uint32)
    out_rows = [t.view(np.uint8).reshape(total, -1) for t in targets]

    def padded(byte_count: int, width: int) -> int:
        period = max(1, 1024 // (rows * width))
        return -(-byte_count // width // period) * period

    for index in range(-(-total // rows)):
        here = slice(index * rows, min(total, (index + 1) * rows))
        loaded = []
        for source in sources:
            width = _unit_bytes(source.shape[1])
            tile = np.zeros((rows, padded(source.shape[1], width) * width), np.uint8)
            tile[: here.stop - here.start, : source.shape[1]] = source[here]
            units = tile.reshape(rows, -1, width).transpose(1, 0, 2)
            loaded.append(Bytes(_swizzle(units, width)))
        stored = []
        for target in out_rows:
            width = _unit_bytes(target.shape[1])
            size = rows * padded(target.shape[1], width) * width
            stored.append(Bytes(np.zeros(size, np.uint8)))
        body(
            loop.Tile(
                tiling=tiling,
                rows_total=total,
                index=Int(index),
                thread=Int(thread),
                lane=Int(thread % 32),
                warp=Int(thread // 32),
                row=Int(thread % rows),
                segment=Int(thread // rows),
                active=thread < tiling.active,
                inputs=tuple(loaded),
                input_units=tuple(_unit_bytes(s.shape[1]) for s in sources),
                outputs=tuple(stored),
                output_units=tuple(_unit_bytes(t.shape[1]) for t in out_rows),
                raw_inputs=tuple(raw_sources),
                raw_outputs=tuple(Bytes(r) for r in raw),
                scratch=scratch,
            )
        )
        for target, memory in zip(out_rows, stored, strict=True):
            width = _unit_bytes(target.shape[1])
            units = _swizzle(memory.data, width).reshape(-1, rows, width)
            tile = units.transpose(1, 0, 2).reshape(rows, -1)
            target[here] = tile[: here.stop - here.start, : target.shape[1]]
    return tuple(jnp.asarray(a) for a in (*targets, *raw))
