"""`StoredWeight`: what a compressed weight offers, so that every linear can run it.

A format is a frozen dataclass that derives from `StoredWeight`, is registered with
`jax.tree_util.register_pytree_with_keys_class`, and stands in
`sixbit_jax.formats.FORMATS`. Its arrays carry any number of leading axes (layers of a
stack). It then works as the weight of every `Linear`, on every route of a site, in
`sixbit_jax.sample`, and in checkpoint directories:

| who asks                      | for                                                |
| ----------------------------- | -------------------------------------------------- |
| `Linear`, the BF16 route      | `prepare`, `dequantize`, `expand_bfloat16`         |
| every other route             | `divisor`, `rotation`                              |
| routes with INT8 values       | `expand_int8`: values and one scale per row        |
| the NVFP4 route               | NVFP4Array: its own arrays; others: `dequantize`   |
| `jit`, `scan`, `vmap`         | `array_names`, `static_names` (pytree)             |
| `sixbit_jax.checkpoint`       | `format_name`, `layout`, `from_arrays`             |
"""

import abc
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from pallas_kernels.numerics import int8
from sixbit_jax.formats._checks import stored_bytes
from sixbit_jax.formats.rotation import rotate

type ArrayLayout = dict[str, tuple[tuple[int, ...], np.dtype]]
"""Shape and dtype of each stored array of one matrix, by name."""


class StoredWeight(abc.ABC):
    """A matrix [..., N, K] in a compressed form.

    Attributes:
      array_names: the dataclass fields that hold arrays, in the order of the leaves.
      static_names: the other fields; hashable, part of the tree structure.
    """

    array_names: ClassVar[tuple[str, ...]]
    static_names: ClassVar[tuple[str, ...]] = ("rotation",)

    @property
    @abc.abstractmethod
    def rotation(self) -> int:
        """0, or the width of the block Hadamard that was folded in along K.

        The values are then those of W H; activations must be rotated the same way.
        """

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Logical shape [..., N, K]."""

    @abc.abstractmethod
    def dequantize(
        self, dtype: jax.typing.DTypeLike = jnp.float32
    ) -> Float[Array, "*batch n k"]:
        """The stored values [..., N, K]; still rotated if `rotation` is set."""

    @property
    @abc.abstractmethod
    def format_name(self) -> str:
        """Name in checkpoint headers, e.g. "nvfp4"; with `rotation` it says all that
        is static."""

    @classmethod
    @abc.abstractmethod
    def layout(cls, format_name: str, shape: tuple[int, ...]) -> ArrayLayout | None:
        """The arrays of one matrix [N, K], or None if the name is another format's.

        Raises:
          ValueError: the shape cannot be stored in this format.
        """

    @classmethod
    @abc.abstractmethod
    def from_arrays(
        cls, format_name: str, arrays: dict[str, Any], rotation: int
    ) -> Self:
        """The weight whose `arrays()`, `format_name` and `rotation` these are."""

    def expand_int8(
        self, *, implementation: str | None = None
    ) -> tuple[Int8[Array, "*batch n k"], Float[Array, "*batch n"]]:
        """INT8 values and one float32 scale per row, for an integer GEMM.

        The default rounds the dequantized row to 127 steps of its largest magnitude;
        formats whose values are few enough whole multiples of a scale do it exactly.

        Args:
          implementation: the implementation of the kernel, where the format has one.
        """
        del implementation
        return int8.quantize(self.dequantize())

    def expand_bfloat16(
        self, *, implementation: str | None = None
    ) -> Float[Array, "*batch n k"]:
        """`dequantize(bfloat16)`, by a kernel where the format has one."""
        del implementation
        return self.dequantize(jnp.bfloat16)

    @property
    def divisor(self) -> Float[Array, "*batch k"] | None:
        """What activations are divided by before they are rotated; None: by nothing."""
        return None

    @property
    def undivided(self) -> "StoredWeight":
        """The weight for activations that are already divided."""
        return self

    def prepare(self, x: Float[Array, "*batch k"]) -> Float[Array, "*batch k"]:
        """The activation that these values multiply: divided and rotated."""
        if self.divisor is not None:
            x = (x.astype(jnp.float32) / self.divisor).astype(x.dtype)
        return rotate(x, self.rotation)

    @property
    def ndim(self) -> int:
        """Number of logical axes."""
        return len(self.shape)

    @property
    def dtype(self) -> jnp.dtype:
        """Logical dtype, float32."""
        return jnp.dtype(jnp.float32)

    @property
    def nbytes(self) -> int:
        """Stored bytes of all arrays."""
        return stored_bytes(*self.arrays().values())

    def arrays(self) -> dict[str, Any]:
        """The stored arrays by name."""
        return {name: getattr(self, name) for name in self.array_names}

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], tuple]:
        """Children with their attribute names; the rest is static."""
        children = tuple(
            (jax.tree_util.GetAttrKey(name), getattr(self, name))
            for name in self.array_names
        )
        return children, tuple(getattr(self, name) for name in self.static_names)

    @classmethod
    def tree_unflatten(cls, static: tuple, children: tuple[Any, ...]) -> Self:
        """Rebuilds without validation: vmap and scan pass slices and placeholders."""
        self = object.__new__(cls)
        names = (*cls.array_names, *cls.static_names)
        for name, value in zip(names, (*children, *static), strict=True):
            object.__setattr__(self, name, value)
        return self


def check_rotation(rotation: int, shape: tuple[int, ...] | None) -> None:
    """Refuses a rotation that is no block Hadamard, or none of this shape.

    Raises:
      ValueError: neither 0 nor a power of two that divides the last axis.
    """
    if not isinstance(rotation, int) or rotation < 0 or rotation & (rotation - 1):
        raise ValueError(f"rotation must be 0 or a power of two, found {rotation!r}")
    if shape is not None and rotation and shape[-1] % rotation:
        raise ValueError(
            f"rotation {rotation} must divide the last axis of an array of shape "
            f"{tuple(shape)}"
        )
