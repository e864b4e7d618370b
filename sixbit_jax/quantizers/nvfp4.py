"""NVFP4 weights, to nearest or refined: which parameters, and a model in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
from flax import nnx

from sixbit_jax.formats import NVFP4Array
from sixbit_jax.quantizers.refine_nvfp4 import refine_nvfp4
from sixbit_jax.quantizers.storage import WeightRecipe, changed_weights

_to_nearest = jax.jit(NVFP4Array.quantize, static_argnames="rotation")


@dataclass(frozen=True)
class NVFP4Recipe:
    """Which weights are stored in NVFP4, and how.

    Attributes:
      rotation: width of the block Hadamard folded into the weights of sites; 0: none.
        Weights whose width it does not divide are stored without.
      small_batch: also the weights of linears that run on few rows (modulation, time
        and text embedding), which are never rotated.
      refine: block scales of least squared error (`refine_nvfp4`, DVD-Quant's BGR)
        instead of amax / 6.
    """

    rotation: int = 128
    small_batch: bool = True
    refine: bool = False
    multiple: ClassVar[int] = 16

    @property
    def format_name(self) -> str:
        """As in a checkpoint's header."""
        return "nvfp4"

    @property
    def fit(self) -> str:
        """How block scales are found, in words."""
        return "grid refinement" if self.refine else "round-to-nearest"

    @property
    def compress(self) -> Callable[..., NVFP4Array]:
        """The compiled function (weight, *, rotation) -> NVFP4Array."""
        return refine_nvfp4 if self.refine else _to_nearest


def quantize(model: nnx.Module, recipe: WeightRecipe | None = None) -> nnx.Module:
    """A copy of a model in memory with its weights in NVFP4 or another format.

    `convert(..., weights=recipe)` gives the same weights without holding a model.

    Args:
      model: a ported transformer with plain weights.
      recipe: which weights and how; the default is every site (rotated by 128) and
        every small-batch linear, rounded to nearest.

    Returns:
      A new model; parameters that stay as they are are shared with the old one.

    >>> import sixbit_jax
    >>> from sixbit_jax.demo.model import COGVIDEOX
    >>> model = COGVIDEOX.new(0, {"num_layers": 2})
    >>> small = sixbit_jax.quantize(model)
    >>> weight = small.transformer_blocks.ff.up.weight.get_value()
    >>> type(weight).__name__, weight.rotation
    ('NVFP4Array', 128)
    """
    recipe = recipe or NVFP4Recipe()
    compress = recipe.compress
    return changed_weights(
        model,
        recipe,
        lambda name, weight, rotation: compress(weight, rotation=rotation),
    )


__all__ = ["NVFP4Recipe", "quantize"]
