"""Weights on uniform grids of 2 to 8 bits, MinMax or refined, and SmoothQuant."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.formats import SmoothedArray, UniformArray
from sixbit_jax.formats.uniform_grid import minmax_grid
from sixbit_jax.quantizers.refine_uniform import refined_grid
from sixbit_jax.quantizers.storage import changed_weights

_to_grid = partial(jax.jit, static_argnames=("bits", "rotation", "grid"))(
    UniformArray.quantize
)
GRIDS = {"minmax": minmax_grid, "bgr": refined_grid}
"""Rules for the grid of a row, by name."""


@dataclass(frozen=True)
class UniformRecipe:
    """Which weights are stored on uniform grids, and how.

    Attributes:
      bits: 2 to 8.
      rotation: width of the block Hadamard folded into the weights of sites; 0: none.
        Weights whose width it does not divide are stored without.
      small_batch: also the weights of linears that run on few rows (modulation, time
        and text embedding), which are never rotated.
      grid: "minmax", or "bgr" (DVD-Quant's Bounded-init Grid Refinement).
    """

    bits: int = 4
    rotation: int = 128
    small_batch: bool = True
    grid: Literal["minmax", "bgr"] = "minmax"
    multiple: ClassVar[int] = 8

    def __post_init__(self) -> None:
        if self.grid not in GRIDS:
            raise ValueError(
                f"grid: expected one of {', '.join(GRIDS)}; found {self.grid!r}"
            )

    @property
    def compress(self) -> Callable[..., UniformArray]:
        """The compiled function (weight, *, rotation) -> UniformArray."""
        return partial(_to_grid, bits=self.bits, grid=GRIDS[self.grid])

    @property
    def format_name(self) -> str:
        """As in a checkpoint's header."""
        return f"uniform{self.bits}"

    @property
    def fit(self) -> str:
        """How the grid of a row is found, in words."""
        return "grid refinement" if self.grid == "bgr" else "round-to-nearest"


def smoothing_divisor(
    activation: Float[Array, "*batch k"],
    w: Float[Array, "*batch n k"],
    *,
    alpha: float = 0.5,
) -> Float[Array, "*batch k"]:
    """SmoothQuant's d_j = max|x_j|^alpha / max|w_j|^(1 - alpha) (arXiv 2211.10438).

    Args:
      activation: largest magnitude of each channel on calibration data.
      w: weights.
      alpha: how much of the difficulty moves into the weight, 0..1.
    """
    tiny = 1e-5
    by_weight = jnp.abs(w.astype(jnp.float32)).max(-2)
    numerator = jnp.maximum(activation.astype(jnp.float32), tiny) ** alpha
    divisor = numerator / jnp.maximum(by_weight, tiny) ** (1 - alpha)
    return jnp.clip(divisor, tiny, 1 / tiny)


def smooth_quantize(
    model: nnx.Module,
    maxima: Mapping[str, Float[Array, "layers k"]],
    recipe: UniformRecipe,
    *,
    alpha: float = 0.5,
) -> nnx.Module:
    """A copy of a model with SmoothQuant's weights: a baseline that needs data.

    Every linear of a site has a divisor of its own. The original shares one among the
    linears of an activation, because it is folded into the layer before; here the
    division runs live and none has to compromise.

    Args:
      model: a ported transformer with plain weights.
      maxima: largest magnitudes of each channel of the activation, by weight name;
        sites that are not listed are quantized without a divisor.
      recipe: grids of the smoothed weights.
      alpha: see `smoothing_divisor`.
    """

    def change(name: str, weight: Any, rotation: int) -> Any:
        if name not in maxima:
            return recipe.compress(weight, rotation=rotation)
        divisor = smoothing_divisor(maxima[name], weight, alpha=alpha)
        smoothed = weight.astype(jnp.float32) * divisor[..., None, :]
        return SmoothedArray(recipe.compress(smoothed, rotation=rotation), divisor)

    return changed_weights(model, recipe, change)


__all__ = ["UniformRecipe", "smooth_quantize", "smoothing_divisor"]
