"""NVFP4 weights, to nearest or refined: which parameters, and a model in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax
from flax import nnx

from sixbit_jax.formats import NVFP4Array, StoredWeight
from sixbit_jax.quantizers.refine_nvfp4 import refine_nvfp4
from sixbit_jax.quantizers.uniform import with_weights

_to_nearest = jax.jit(NVFP4Array.quantize, static_argnames="rotation")


@dataclass(frozen=True)
class NVFP4Recipe:
    """Which weights are stored in NVFP4, and how.

    Attributes:
      rotation: width of the block Hadamard folded into the weights of sites; 0: none.
      small_batch: also the weights of linears that run on few rows (modulation, time
        and text embedding), which are never rotated.
      refine: block scales of least squared error (`refine_nvfp4`, DVD-Quant's BGR)
        instead of amax / 6.
    """

    rotation: int = 128
    small_batch: bool = True
    refine: bool = False

    @property
    def compress(self) -> Callable[..., NVFP4Array]:
        """The compiled function (weight, *, rotation) -> NVFP4Array."""
        return refine_nvfp4 if self.refine else _to_nearest

    def rotation_of(self, role: str | None, in_features: int) -> int | None:
        """Rotation of a weight, or None if it stays as it is.

        Args:
          role: `weight_role` of the model class.
          in_features: K of the weight.

        Raises:
          ValueError: if K does not fit the rotation.
        """
        if role == "site":
            if self.rotation and in_features % self.rotation:
                raise ValueError(
                    f"rotation of {self.rotation}: expected a divisor of the input "
                    f"width, found {in_features}; use rotation 0"
                )
            return self.rotation if in_features % 16 == 0 else None
        if role == "small_batch" and self.small_batch and in_features % 16 == 0:
            return 0
        return None


class WeightRecipe(Protocol):
    """What says which weights are stored, and how: `NVFP4Recipe`, `UniformRecipe`."""

    @property
    def compress(self) -> Callable[..., StoredWeight]:
        """The compiled function (weight, *, rotation) -> stored weight."""
        ...

    def rotation_of(self, role: str | None, in_features: int) -> int | None:
        """Rotation of a weight, or None if it stays as it is."""
        ...


def quantize(model: nnx.Module, recipe: WeightRecipe | None = None) -> nnx.Module:
    """A copy of a model in memory with its weights in NVFP4 or another format.

    `convert --weights nvfp4` (with `--refine` for a recipe that refines) gives the same
    weights without holding the model twice.

    Args:
      model: a ported transformer with plain weights.
      recipe: which weights and how; the default is every site (rotated by 128) and
        every small-batch linear, rounded to nearest.

    Returns:
      A new model; parameters that stay as they are are shared with the old one.
    """
    recipe = recipe or NVFP4Recipe()
    compress = recipe.compress
    return with_weights(
        model,
        recipe.rotation_of,
        lambda name, weight, rotation: compress(weight, rotation=rotation),
    )


__all__ = ["NVFP4Recipe", "WeightRecipe", "quantize"]
