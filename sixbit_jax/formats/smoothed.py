"""`SmoothedArray`: a stored weight whose activations are divided channel by channel."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from sixbit_jax.formats._checks import described
from sixbit_jax.formats.stored import StoredWeight
from sixbit_jax.formats.wrapped import Inner, WrappedWeight

_PREFIX = "smoothed-"


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class SmoothedArray(WrappedWeight):
    """The stored form of W diag(d), for activations x / d: (x / d) (W diag(d))^T.

    Attributes:
      weight: any stored format; its rotation is applied after the division.
      divisor: d, float32 [..., K], positive.
    """

    own_names: ClassVar[tuple[str, ...]] = ("divisor",)
    array_names: ClassVar[tuple[str, ...]] = ("weight", *own_names)
    static_names: ClassVar[tuple[str, ...]] = ()

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
    def format_name(self) -> str:
        """ "smoothed-" and the format inside."""
        return _PREFIX + self.weight.format_name

    @classmethod
    def parse(cls, format_name: str, shape: tuple[int, ...]) -> Inner | None:
        """What a name says of a matrix [N, K]; None: it is another format's."""
        if not format_name.startswith(_PREFIX):
            return None
        inside = format_name.removeprefix(_PREFIX)
        return Inner(inside, {}, {"divisor": (shape[-1],)})
