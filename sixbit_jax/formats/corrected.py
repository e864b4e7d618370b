"""`CorrectedArray`: a stored weight with a low-rank correction beside it."""

import dataclasses
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sixbit_jax.formats._checks import described
from sixbit_jax.formats.applied import AppliedWeight, low_rank_update
from sixbit_jax.formats.wrapped import Inner, WrappedWeight

_NAME = re.compile(r"corrected-r(\d+)g(\d+)t(\d+)(l?)-(.+)")


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class CorrectedArray(WrappedWeight, AppliedWeight):
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

    own_names: ClassVar[tuple[str, ...]] = ("down", "up", "factors")
    array_names: ClassVar[tuple[str, ...]] = ("weight", *own_names)
    static_names: ClassVar[tuple[str, ...]] = ("text_rows", "live")

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

    @property
    def format_name(self) -> str:
        """ "corrected", rank, factors, text rows, l for live, and the format inside."""
        rank, groups = self.down.shape[-2], self.factors.shape[-1]
        inner, live = self.weight.format_name, "l" if self.live else ""
        return f"corrected-r{rank}g{groups}t{self.text_rows}{live}-{inner}"

    @classmethod
    def parse(cls, format_name: str, shape: tuple[int, ...]) -> Inner | None:
        """What a name says of a matrix [N, K]; None: it is another format's."""
        match = _NAME.fullmatch(format_name)
        if match is None:
            return None
        rank, groups, text_rows = (int(match[n]) for n in (1, 2, 3))
        own: dict[str, tuple[int, ...]] = {
            "down": (rank, shape[-1]),
            "up": (shape[-2], rank),
            "factors": (groups,),
        }
        return Inner(match[5], {"text_rows": text_rows, "live": bool(match[4])}, own)


__all__ = ["CorrectedArray"]
