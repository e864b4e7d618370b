"""`CorrectedArray`: a stored weight with a low-rank correction beside it."""

import dataclasses
import re
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from sixbit_jax.formats._checks import described
from sixbit_jax.formats.applied import AppliedWeight, low_rank_update
from sixbit_jax.formats.stored import ArrayLayout, StoredWeight

_NAME = re.compile(r"corrected-r(\d+)g(\d+)t(\d+)(l?)-(.+)")
_OWN = ("down", "up", "factors")


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class CorrectedArray(StoredWeight, AppliedWeight):
    """y = x W_hat^T + M (x A^T) B^T with W_hat in any stored format.

    With rank one this is what stays of Q-VDiT's Token-aware Quantization Estimator at
    inference (arXiv 2505.22167): M has one factor for each frame, so that the update
    cannot be folded into the matrix. With M = 1 it is a LoRA beside a quantized weight.

    Attributes:
      weight: a stored format; without rotation unless `live`.
      down: A, float32 [..., r, K].
      up: B, float32 [..., N, r].
      factors: M, float32 [..., G]: of the text rows (where there are any), then of
        each frame; G = 1 is one for all rows.
      text_rows: rows before the first frame.
      live: the correction reads the activation before it is quantized; otherwise as the
        route quantizes it, which is what was tuned.
    """

    array_names: ClassVar[tuple[str, ...]] = ("weight", *_OWN)
    static_names: ClassVar[tuple[str, ...]] = ("text_rows", "live")

    weight: StoredWeight
    down: Array
    up: Array
    factors: Array
    text_rows: int = 0
    live: bool = False

    def __post_init__(self) -> None:
        if not all(map(described, (self.weight, self.down, self.up, self.factors))):
            return
        *lead, rows, columns = self.weight.shape
        if self.weight.rotation and not self.live:
            raise ValueError(
                "a corrected weight must not be rotated: its correction reads the "
                "activation as it is quantized, but not rotated; found rotation "
                f"{self.weight.rotation}"
            )
        rank = self.down.shape[-2] if len(self.down.shape) > 1 else 0
        expected = {
            "down": (*lead, rank, columns),
            "up": (*lead, rows, rank),
            "factors": (*lead, *self.factors.shape[-1:]),
        }
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape or not found[-1] or not rank:
                raise ValueError(
                    f"CorrectedArray.{name} of a weight {self.weight.shape}: expected "
                    f"{shape}, found {found}"
                )

    @property
    def rotation(self) -> int:
        """Of the weight inside."""
        return self.weight.rotation

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape [..., N, K]."""
        return self.weight.shape

    def correction(self, x: Float[Array, "*batch K"]) -> Float[Array, "*batch N"]:
        """M (x A^T) B^T in float32, x live or as the route quantizes it."""
        return low_rank_update(
            x, self.down, self.up, self.factors, text_rows=self.text_rows
        )

    def apply(self, x: Float[Array, "*batch K"]) -> Float[Array, "*batch N"]:
        """The corrected product of an activation that is not quantized."""
        inside = self.weight.prepare(x)
        y = jnp.einsum("...k,nk->...n", inside, self.dequantize(x.dtype))
        return (y.astype(jnp.float32) + self.correction(x)).astype(x.dtype)

    def prepare(self, x: Float[Array, "*batch k"]) -> Float[Array, "*batch k"]:
        """The activation itself, which the correction reads; see `apply`."""
        return x

    def dequantize(
        self, dtype: jax.typing.DTypeLike = jnp.float32
    ) -> Float[Array, "*batch n k"]:
        """The matrix without its correction."""
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
        """The arrays of the weight inside, and those of the correction."""
        return {**self.weight.arrays(), **{name: getattr(self, name) for name in _OWN}}

    @property
    def format_name(self) -> str:
        """ "corrected", rank, factors, text rows, l for live, and the format inside."""
        rank, groups = self.down.shape[-2], self.factors.shape[-1]
        inner, live = self.weight.format_name, "l" if self.live else ""
        return f"corrected-r{rank}g{groups}t{self.text_rows}{live}-{inner}"

    @classmethod
    def layout(cls, format_name: str, shape: tuple[int, ...]) -> ArrayLayout | None:
        """The arrays of one matrix [N, K], or None if the name is another format's.

        Raises:
          ValueError: the shape cannot be stored in this format.
        """
        found = _inner(format_name, shape)
        if found is None:
            return None
        (rank, groups, _, _), _, arrays = found
        number = np.dtype(np.float32)
        return {
            **arrays,
            "down": ((rank, shape[-1]), number),
            "up": ((shape[-2], rank), number),
            "factors": ((groups,), number),
        }

    @classmethod
    def from_arrays(
        cls, format_name: str, arrays: dict[str, Any], rotation: int
    ) -> Self:
        """The weight whose `arrays()`, `format_name` and `rotation` these are."""
        # Any shape that all formats take: the arrays say what the shape is.
        found = _inner(format_name, (128, 128))
        if found is None:
            raise ValueError(f"expected corrected-...-FORMAT, found {format_name!r}")
        (_, _, text_rows, live), kind, _ = found
        rest = {name: value for name, value in arrays.items() if name not in _OWN}
        inner = format_name.split("-", 2)[2]
        weight = kind.from_arrays(inner, rest, rotation)
        own = (arrays[name] for name in _OWN)
        return cls(weight, *own, text_rows=text_rows, live=live)


def _inner(
    format_name: str, shape: tuple[int, ...]
) -> tuple[tuple[int, int, int, bool], type[StoredWeight], ArrayLayout] | None:
    """Rank, factors, text rows and live, the format inside, and its arrays."""
    # The list of formats contains this one.
    from sixbit_jax.formats import stored_layout

    match = _NAME.fullmatch(format_name)
    found = None if match is None else stored_layout(match[5], shape)
    if match is None or found is None:
        return None
    return (int(match[1]), int(match[2]), int(match[3]), bool(match[4])), *found


__all__ = ["CorrectedArray"]
