"""`UniformArray`: 2 to 8 bits per value on one asymmetric grid per row, as a pytree."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, UInt8

from pallas_kernels.numerics import int8
from sixbit_jax.formats._checks import described
from sixbit_jax.formats.rotation import rotate
from sixbit_jax.formats.stored import ArrayLayout, StoredWeight, check_rotation
from sixbit_jax.formats.uniform_grid import (
    UniformGrid,
    check_bits,
    decode_uniform,
    encode_uniform,
    minmax_grid,
    pack_codes,
    unpack_codes,
)

type GridRule = Callable[[jax.Array, int], UniformGrid]
"""(w [..., N, K], bits) -> the grid of each row."""

_NAME = re.compile(r"uniform([2-8])")


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class UniformArray(StoredWeight):
    """A matrix [..., N, K] of b-bit codes with a scale and a zero point per row.

    value = scale * (code - zero_point), rotated along K if `rotation` is set.

    Attributes:
      codes: uint8 [..., N, K b / 8], packed by `pack_codes`: b bits per value.
      scales: float32 [..., N].
      zero_points: uint8 [..., N].
      bits: b, 2 to 8.
      rotation: 0, or the width of the block Hadamard that was folded in along K.

    >>> import jax.numpy as jnp
    >>> from sixbit_jax import UniformArray
    >>> row = jnp.linspace(-1, 1, 128)[None]
    >>> stored = UniformArray.quantize(row, bits=8)
    >>> bool(abs(stored.dequantize() - row).max() < 2 / 255)
    True
    """

    array_names: ClassVar[tuple[str, ...]] = ("codes", "scales", "zero_points")
    static_names: ClassVar[tuple[str, ...]] = ("bits", "rotation")

    codes: Array
    scales: Array
    zero_points: Array
    bits: int
    rotation: int = 0

    def __post_init__(self) -> None:
        check_bits(self.bits)
        check_rotation(self.rotation, None)
        leaves = self.arrays()
        if not all(map(described, leaves.values())):
            return
        dtypes = (jnp.uint8, jnp.float32, jnp.uint8)
        for (name, leaf), dtype in zip(leaves.items(), dtypes, strict=True):
            if leaf.dtype != dtype:
                raise ValueError(
                    f"UniformArray.{name} must be {jnp.dtype(dtype)}, found "
                    f"{leaf.dtype} with shape {tuple(leaf.shape)}"
                )
        codes, *rows = (tuple(leaf.shape) for leaf in leaves.values())
        fits = len(codes) >= 2 and codes[-1] and codes[-1] % self.bits == 0
        if not fits or any(shape != codes[:-1] for shape in rows):
            raise ValueError(
                f"UniformArray of {self.bits} bits needs codes [..., N, K/8 * "
                f"{self.bits}], scales [..., N] and zero_points [..., N], found "
                f"{codes}, {rows[0]} and {rows[1]}"
            )
        check_rotation(self.rotation, self.shape)

    @classmethod
    def quantize(
        cls,
        w: Float[Array, "*batch n k"],
        *,
        bits: int,
        rotation: int = 0,
        grid: GridRule = minmax_grid,
    ) -> Self:
        """Quantizes w to nearest on the grids that a rule finds for its rows.

        Args:
          w: float [..., N, K], K a multiple of 8.
          bits: 2 to 8.
          rotation: width of the block Hadamard to fold in along K first; 0 for none.
          grid: (rotated w, bits) -> UniformGrid, for example `minmax_grid` or
            `quantizers.refine_uniform.refined_grid`.

        Raises:
          ValueError: other bits, or a K that does not fit.
        """
        check_rotation(rotation, w.shape)
        w = rotate(w.astype(jnp.float32), rotation)
        found = grid(w, bits)
        return cls.from_codes(encode_uniform(w, found, bits), found, bits, rotation)

    @classmethod
    def from_codes(
        cls,
        codes: UInt8[Array, "*batch n k"],
        grid: UniformGrid,
        bits: int,
        rotation: int = 0,
    ) -> Self:
        """Packs codes that were found elsewhere, such as by tuning.

        Args:
          codes: uint8 [..., N, K], 0 .. 2^bits - 1, K a multiple of 8.
          grid: scale and whole zero point (0 .. 2^bits - 1) of each row.
          bits: 2 to 8.
          rotation: what is folded into the values.
        """
        scales = grid.scale.astype(jnp.float32)
        zero_points = grid.zero_point.astype(jnp.uint8)
        return cls(pack_codes(codes, bits), scales, zero_points, bits, rotation)

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape [..., N, K]."""
        return (*self.codes.shape[:-1], self.codes.shape[-1] // self.bits * 8)

    @property
    def grid(self) -> UniformGrid:
        """Scale and zero point of each row, as float32."""
        return UniformGrid(self.scales, self.zero_points.astype(jnp.float32))

    def unpacked(self) -> UInt8[Array, "*batch n k"]:
        """The codes, one per byte [..., N, K]."""
        return unpack_codes(self.codes, self.bits)

    def dequantize(
        self, dtype: jax.typing.DTypeLike = jnp.float32
    ) -> Float[Array, "*batch n k"]:
        """The stored values [..., N, K]; still rotated if `rotation` is set."""
        return decode_uniform(self.unpacked(), self.grid).astype(dtype)

    def expand_int8(
        self, *, implementation: str | None = None
    ) -> tuple[Int8[Array, "*batch n k"], Float[Array, "*batch n"]]:
        """code - zero_point and the scales: exact up to 7 bits.

        8-bit codes reach beyond INT8 unless the zero point is 128; they are rounded
        to 127 steps of the row's largest magnitude.
        """
        del implementation
        if self.bits == 8:
            return int8.quantize(self.dequantize())
        levels = self.unpacked().astype(jnp.int16) - self.zero_points[..., None]
        return levels.astype(jnp.int8), self.scales

    @property
    def format_name(self) -> str:
        """ "uniform" and the bits."""
        return f"uniform{self.bits}"

    @classmethod
    def layout(cls, format_name: str, shape: tuple[int, ...]) -> ArrayLayout | None:
        """The arrays of one matrix [N, K], or None if the name is another format's.

        Raises:
          ValueError: the shape cannot be stored in this format.
        """
        match = _NAME.fullmatch(format_name)
        if not match:
            return None
        if len(shape) != 2 or not shape[1] or shape[1] % 8:
            raise ValueError(
                f"expected [N, K] with K a multiple of 8, found {list(shape)}"
            )
        rows, columns = shape
        return {
            "codes": ((rows, columns // 8 * int(match[1])), np.dtype(np.uint8)),
            "scales": ((rows,), np.dtype(np.float32)),
            "zero_points": ((rows,), np.dtype(np.uint8)),
        }

    @classmethod
    def from_arrays(
        cls, format_name: str, arrays: dict[str, Any], rotation: int
    ) -> Self:
        """The weight whose `arrays()`, `format_name` and `rotation` these are."""
        return cls(**arrays, bits=int(format_name[-1]), rotation=rotation)
