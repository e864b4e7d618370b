"""`SmoothedArray`: a stored weight whose activations are divided channel by channel."""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from sixbit_jax.formats._checks import described
from sixbit_jax.formats.stored import ArrayLayout, StoredWeight

_PREFIX = "smoothed-"


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class SmoothedArray(StoredWeight):
    """The stored form of W diag(d), for activations x / d: (x / d) (W diag(d))^T.

    Attributes:
      weight: any stored format; its rotation is applied after the division.
      divisor: d, float32 [..., K], positive.
    """

    array_names: ClassVar[tuple[str, ...]] = ("weight", "divisor")
    static_names: ClassVar[tuple[str, ...]] = ()

    weight: StoredWeight
    # The default replaces the property of the base class, which has no setter.
    divisor: Any = None

    def __post_init__(self) -> None:
        if not (described(self.weight) and described(self.divisor)):
            return
        shape, found = self.weight.shape, tuple(self.divisor.shape)
        if found != (*shape[:-2], shape[-1]) or self.divisor.dtype != jnp.float32:
            raise ValueError(
                f"SmoothedArray of shape {shape} needs a float32 divisor of shape "
                f"{(*shape[:-2], shape[-1])}, found {self.divisor.dtype} {found}"
            )

    @property
    def undivided(self) -> StoredWeight:
        """The weight inside."""
        return self.weight

    @property
    def rotation(self) -> int:
        """Of the weight inside."""
        return self.weight.rotation

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape [..., N, K]."""
        return self.weight.shape

    def dequantize(
        self, dtype: jax.typing.DTypeLike = jnp.float32
    ) -> Float[Array, "*batch n k"]:
        """Values of the weight inside, for divided activations."""
        return self.weight.dequantize(dtype)

    def expand_int8(
        self, *, implementation: str | None = None
    ) -> tuple[Int8[Array, "*batch n k"], Float[Array, "*batch n"]]:
        """Of the weight inside."""
        return self.weight.expand_int8(implementation=implementation)

    def expand_bfloat16(
        self, *, implementation: str | None = None
    ) -> Float[Array, "*batch n k"]:
        """Of the weight inside."""
        return self.weight.expand_bfloat16(implementation=implementation)

    def arrays(self) -> dict[str, Any]:
        """The arrays of the weight inside, and the divisor."""
        return {**self.weight.arrays(), "divisor": self.divisor}

    @property
    def format_name(self) -> str:
        """ "smoothed-" and the format inside."""
        return _PREFIX + self.weight.format_name

    @classmethod
    def layout(cls, format_name: str, shape: tuple[int, ...]) -> ArrayLayout | None:
        """The arrays of one matrix [N, K], or None if the name is another format's.

        Raises:
          ValueError: the shape cannot be stored in this format.
        """
        inner = _inner(format_name, shape)
        if inner is None:
            return None
        return {**inner[1], "divisor": ((shape[-1],), np.dtype(np.float32))}

    @classmethod
    def from_arrays(
        cls, format_name: str, arrays: dict[str, Any], rotation: int
    ) -> Self:
        """The weight whose `arrays()`, `format_name` and `rotation` these are."""
        rest = {k: v for k, v in arrays.items() if k != "divisor"}
        # Any K that all formats take: the arrays say what the shape is.
        inner = _inner(format_name, (128, 128))
        if inner is None:
            raise ValueError(f"expected {_PREFIX}FORMAT, found {format_name!r}")
        name = format_name.removeprefix(_PREFIX)
        return cls(inner[0].from_arrays(name, rest, rotation), arrays["divisor"])


def _inner(
    format_name: str, shape: tuple[int, ...]
) -> tuple[type[StoredWeight], ArrayLayout] | None:
    # The list of formats contains this one.
    from sixbit_jax.formats import stored_layout

    if not format_name.startswith(_PREFIX):
        return None
    return stored_layout(format_name.removeprefix(_PREFIX), shape)
