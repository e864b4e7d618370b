"""NumPy stand-ins for the values of `row_tiles.lanes`, one element per thread."""

from __future__ import annotations

import numpy as np


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
