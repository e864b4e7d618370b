"""`Int8Array`: symmetric INT8 with one scale per row, as a pytree."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.numerics import int8
from sixbit_jax.formats._checks import described, stored_bytes


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class Int8Array:
    """An array [..., M, K] as value * scale, one scale per row of the last axis.

    Attributes:
      values: int8 [..., M, K], -127..127.
      scales: float32 [..., M], amax of the row / 127.
    """

    values: Array
    scales: Array

    def __post_init__(self) -> None:
        if not (described(self.values) and described(self.scales)):
            return
        if self.values.dtype != jnp.int8 or self.scales.dtype != jnp.float32:
            raise ValueError(
                f"Int8Array needs int8 values and float32 scales, found "
                f"{self.values.dtype} and {self.scales.dtype}"
            )
        values, scales = tuple(self.values.shape), tuple(self.scales.shape)
        if not values or scales != values[:-1]:
            raise ValueError(
                f"Int8Array needs values [..., M, K] and scales [..., M], found "
                f"{values} and {scales}"
            )

    @classmethod
    def quantize(cls, x: Float[Array, "*batch m k"]) -> Self:
        """Quantizes each row of the last axis, to nearest, ties to even.

        Args:
          x: float [..., M, K]: tokens of an activation, output channels of a weight.
        """
        return cls(*int8.quantize(x))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        return tuple(self.values.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.values.shape)

    @property
    def dtype(self) -> jnp.dtype:
        """Logical dtype, float32."""
        return jnp.dtype(jnp.float32)

    @property
    def nbytes(self) -> int:
        """Stored bytes: one per value and four per row."""
        return stored_bytes(self.values, self.scales)

    def dequantize(
        self, dtype: jax.typing.DTypeLike = jnp.float32
    ) -> Float[Array, "*batch m k"]:
        """value * scale [..., M, K]."""
        return int8.dequantize(self.values, self.scales, dtype=dtype)

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], None]:
        """Children with their attribute names."""
        names = ("values", "scales")
        return (
            tuple((jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in names),
            None,
        )

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any, ...]) -> Self:
        """Rebuilds without validation: vmap and scan pass slices and placeholders."""
        self = object.__new__(cls)
        for name, child in zip(("values", "scales"), children, strict=True):
            object.__setattr__(self, name, child)
        return self
