"""`WrappedWeight`: a stored weight in any format, with arrays beside it."""

import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np
from jaxtyping import Array, Float, Int8

from sixbit_jax.formats.stored import ArrayLayout, StoredWeight


class Inner(NamedTuple):
    """What the name of a wrapped format says.

    Attributes:
      name: of the format inside.
      static: the wrapper's static fields.
      own: shape of each array of the wrapper, for the matrix that was asked about.
    """

    name: str
    static: dict[str, Any]
    own: dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class WrappedWeight(StoredWeight):
    """A stored weight that stands in front of another one, its field `weight`.

    The values and expansions are those of the weight inside. A subclass says what its
    own float32 arrays do, and how its name holds the name of the format inside.

    Attributes:
      weight: any stored format.
      own_names: fields of the wrapper's own arrays.
    """

    own_names: ClassVar[tuple[str, ...]]

    weight: StoredWeight

    @classmethod
    @abstractmethod
    def parse(cls, format_name: str, shape: tuple[int, ...]) -> Inner | None:
        """What a name says of a matrix [N, K]; None: it is another format's."""

    @property
    def rotation(self) -> int:
        """Of the weight inside."""
        return self.weight.rotation

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape [..., N, K]."""
        return self.weight.shape

    def dequantize(
        self, dtype: jax.typing.DTypeLike = np.float32
    ) -> Float[Array, "*batch n k"]:
        """Values of the weight inside, without what the wrapper does."""
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
        """The arrays of the weight inside, and the wrapper's own."""
        own = {name: getattr(self, name) for name in self.own_names}
        return {**self.weight.arrays(), **own}

    @classmethod
    def layout(cls, format_name: str, shape: tuple[int, ...]) -> ArrayLayout | None:
        """The arrays of one matrix [N, K], or None if the name is another format's.

        Raises:
          ValueError: the shape cannot be stored in this format.
        """
        found = cls._inside(format_name, shape)
        if found is None:
            return None
        inner, _, arrays = found
        dtype = np.dtype(np.float32)
        return {**arrays, **{name: (own, dtype) for name, own in inner.own.items()}}

    @classmethod
    def from_arrays(
        cls, format_name: str, arrays: dict[str, Any], rotation: int
    ) -> Self:
        """The weight whose `arrays()`, `format_name` and `rotation` these are."""
        # Any shape that all formats take: the arrays say what the shape is.
        found = cls._inside(format_name, (128, 128))
        if found is None:
            raise ValueError(
                f"expected the name of a {cls.__name__}, found {format_name!r}"
            )
        inner, kind, _ = found
        rest = {name: a for name, a in arrays.items() if name not in cls.own_names}
        weight = kind.from_arrays(inner.name, rest, rotation)
        own = {name: arrays[name] for name in cls.own_names}
        return cls(weight, **own, **inner.static)

    @classmethod
    def _inside(
        cls, format_name: str, shape: tuple[int, ...]
    ) -> tuple[Inner, type[StoredWeight], ArrayLayout] | None:
        """What the name says, the format inside, and the arrays of that."""
        # The list of formats contains the wrappers.
        from sixbit_jax.formats import stored_layout

        inner = cls.parse(format_name, shape)
        found = None if inner is None else stored_layout(inner.name, shape)
        return None if inner is None or found is None else (inner, *found)


__all__ = ["Inner", "WrappedWeight"]
