"""`ResidualArray`: a uniform base and binary residual branches per output channel.

The storage of FZ-RMQ (MPQ-DMv2, arXiv 2507.04290), a reconstruction: see
`sixbit_jax.methods.mpq_dm.residual_weights`. With n bits on average, row i of a
matrix [N, K] is

    w_hat = scale q + offset + first (2 b1 - 1) + second (2 b2 - 1)

with q a base code of n - 1 bits and b1, b2 the bits of its residual branches: an
unsalient row has none, a normal row one, a salient row two. As many rows are salient
as are unsalient, so the branches of all rows fill exactly N rows of bits, whatever
their number is. They are stored as that pool, and no array is ragged.
"""

import dataclasses
import re
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt8

from sixbit_jax.formats._checks import described
from sixbit_jax.formats.stored import ArrayLayout, StoredWeight, check_rotation

MIN_BITS, MAX_BITS = 2, 4
_NAME = re.compile(rf"residual([{MIN_BITS}-{MAX_BITS}])")


def pack_bits(bits: Bool[Array, "*batch k"]) -> UInt8[Array, "*batch k8"]:
    """Eight values per byte, the first in the lowest bit; K is a multiple of 8."""
    parts = bits.reshape(*bits.shape[:-1], -1, 8).astype(jnp.uint8)
    return (parts << jnp.arange(8, dtype=jnp.uint8)).sum(-1, dtype=jnp.uint8)


def unpack_bits(packed: UInt8[Array, "*batch k8"]) -> UInt8[Array, "*batch k"]:
    """The inverse of `pack_bits`: 0 or 1."""
    parts = (packed[..., None] >> jnp.arange(8, dtype=jnp.uint8)) & jnp.uint8(1)
    return parts.reshape(*packed.shape[:-1], -1)


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class ResidualArray(StoredWeight):
    """A matrix [..., N, K] of n bits on average, rows of n - 1, n or n + 1 bits.

    Attributes:
      base: uint8 [..., n - 1, N, K/8], bit planes of the base codes, lowest first.
      pool: uint8 [..., N, K/8], bits of the branches: of the row at position p the
        first is in row p, the second in row N - num_salient + p.
      scale, offset: float32 [..., N]; the offset holds -s z and the branches' means.
      amplitude: float32 [..., N] of the branches, in the order of the pool.
      position: int32 [..., N], rank of each row by salience, 0 the most salient.
      num_salient: int32 [...]; rows at positions below it have two branches, the
        same number of last ones none.
      rotation: 0, or the width of the block Hadamard that was folded in along K.
    """

    array_names: ClassVar[tuple[str, ...]] = (
        "base",
        "pool",
        "scale",
        "offset",
        "amplitude",
        "position",
        "num_salient",
    )

    base: Array
    pool: Array
    scale: Array
    offset: Array
    amplitude: Array
    position: Array
    num_salient: Array
    rotation: int = 0

    def __post_init__(self) -> None:
        check_rotation(self.rotation, None)
        leaves = self.arrays()
        if not all(map(described, leaves.values())):
            return
        base, pool = tuple(self.base.shape), tuple(self.pool.shape)
        if len(base) < 3 or (*base[:-3], *base[-2:]) != pool:
            raise ValueError(
                f"ResidualArray needs base [..., n - 1, N, K/8] and pool "
                f"[..., N, K/8], found {base} and {pool}"
            )
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(
                f"ResidualArray has {MIN_BITS} to {MAX_BITS} bits on average, found "
                f"{self.bits} (base {base})"
            )
        expected = self.layout(self.format_name, self.shape[-2:]) or {}
        for name, (shape, dtype) in expected.items():
            leaf, full = leaves[name], (*pool[:-2], *shape)
            if leaf.dtype != dtype or tuple(leaf.shape) != full:
                raise ValueError(
                    f"ResidualArray.{name} must be {dtype}{list(full)} for a pool of "
                    f"shape {pool}, found {leaf.dtype}{list(leaf.shape)}"
                )
        check_rotation(self.rotation, self.shape)

    @classmethod
    def from_codes(
        cls,
        codes: UInt8[Array, "*batch n k"],
        levels: tuple[Array, Array, Array, Array],
        position: Int32[Array, "*batch n"],
        num_salient: Int32[Array, "*batch"],
        *,
        bits: int,
        rotation: int = 0,
    ) -> Self:
        """Packs codes and levels that were found elsewhere.

        Args:
          codes: uint8 [..., N, K]: base code in the low n - 1 bits, then the bit of
            each branch; bits of branches that a row does not have are ignored.
          levels: scale, offset and the amplitudes of first and second branch of every
            row, float32 [..., N]; those of absent branches are ignored.
          position, num_salient: as in the attributes.
          bits: n.
          rotation: what is folded into the values.
        """
        scale, offset, first, second = levels
        planes = range(bits - 1)
        base = jnp.stack([pack_bits((codes >> i & 1) == 1) for i in planes], -3)
        # Pool row r is the first branch of the row at position r or, behind those of
        # all, the second one of the row at position r - (N - num_salient).
        rank = jnp.arange(codes.shape[-2])
        start = codes.shape[-2] - num_salient[..., None]
        behind = rank >= start
        order = jnp.argsort(position, -1)
        owner = jnp.take_along_axis(order, jnp.where(behind, rank - start, rank), -1)
        bit = jnp.where(behind, bits, bits - 1)[..., None].astype(jnp.uint8)
        owned = jnp.take_along_axis(codes, owner[..., None], -2)
        amplitude = jnp.where(
            behind,
            jnp.take_along_axis(second, owner, -1),
            jnp.take_along_axis(first, owner, -1),
        )
        return cls(
            base,
            pack_bits((owned >> bit & 1) == 1),
            scale,
            offset,
            amplitude,
            position,
            num_salient,
            rotation,
        )

    @property
    def bits(self) -> int:
        """n, the mean number of bits per value without the numbers of the rows."""
        return self.base.shape[-3] + 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape [..., N, K]."""
        return (*self.pool.shape[:-1], 8 * self.pool.shape[-1])

    @property
    def branches(self) -> Int32[Array, "*batch n"]:
        """Number of residual branches of each row, 0, 1 or 2."""
        salient = self.num_salient[..., None]
        first = self.position < self.shape[-2] - salient
        return first.astype(jnp.int32) + (self.position < salient)

    def dequantize(
        self, dtype: jax.typing.DTypeLike = jnp.float32
    ) -> Float[Array, "*batch n k"]:
        """The stored values [..., N, K]; still rotated if `rotation` is set.

        Computed in float32 and rounded once to `dtype`.
        """
        planes = unpack_bits(self.base)
        code = jnp.zeros(self.shape, jnp.uint8)
        for plane in range(self.bits - 1):
            code |= planes[..., plane, :, :] << plane
        value = code.astype(jnp.float32) * self.scale[..., None]
        value = value + self.offset[..., None]
        rows, salient = self.shape[-2], self.num_salient[..., None]
        value = value + self._branch(self.position, self.branches > 0)
        second = (rows - salient + self.position) % rows
        return (value + self._branch(second, self.branches > 1)).astype(dtype)

    def _branch(self, index: Array, present: Array) -> Float32[Array, "*batch n k"]:
        """One residual branch of every row, 0 where it has none."""
        bits = unpack_bits(jnp.take_along_axis(self.pool, index[..., None], -2))
        amplitude = jnp.take_along_axis(self.amplitude, index, -1)
        amplitude = jnp.where(present, amplitude, 0.0)[..., None]
        return jnp.where(bits == 1, amplitude, -amplitude)

    @property
    def format_name(self) -> str:
        """ "residual" and the mean bits."""
        return f"residual{self.bits}"

    @classmethod
    def layout(cls, format_name: str, shape: tuple[int, ...]) -> ArrayLayout | None:
        """The arrays of one matrix [N, K], or None if the name is another format's.

        n bits per value, 16 bytes per row and 4 per matrix.

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
        (rows, columns), bits = shape, int(match[1])
        row, number = (rows,), np.dtype(np.float32)
        return {
            "base": ((bits - 1, rows, columns // 8), np.dtype(np.uint8)),
            "pool": ((rows, columns // 8), np.dtype(np.uint8)),
            "scale": (row, number),
            "offset": (row, number),
            "amplitude": (row, number),
            "position": (row, np.dtype(np.int32)),
            "num_salient": ((), np.dtype(np.int32)),
        }

    @classmethod
    def from_arrays(
        cls, format_name: str, arrays: dict[str, Any], rotation: int
    ) -> Self:
        """The weight whose `arrays()`, `format_name` and `rotation` these are."""
        del format_name
        return cls(**arrays, rotation=rotation)


__all__ = ["ResidualArray", "pack_bits", "unpack_bits"]
