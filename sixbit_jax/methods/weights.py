"""Recipes of weights by the names that `convert` and its header use."""

from dataclasses import replace

from sixbit_jax.methods.mpq_dm.weight_recipe import ResidualRecipe
from sixbit_jax.quantizers.nvfp4 import NVFP4Recipe
from sixbit_jax.quantizers.storage import WeightRecipe
from sixbit_jax.quantizers.uniform import UniformRecipe

WEIGHT_RECIPES: dict[str, NVFP4Recipe | UniformRecipe | ResidualRecipe] = {
    "nvfp4": NVFP4Recipe(),
    **{f"uniform{bits}": UniformRecipe(bits) for bits in range(2, 9)},
    **{f"residual{bits}": ResidualRecipe(bits) for bits in range(2, 5)},
}
"""Each with the defaults of its class."""


def weight_recipe(
    name: str, *, rotation: int | None = None, refine: bool = False
) -> WeightRecipe:
    """The recipe of a name: what `quantize` takes, from what a command is given.

    Args:
      name: "nvfp4", "uniform2" to "uniform8", "residual2" to "residual4".
      rotation: width of the block Hadamard; None is the recipe's own.
      refine: scales of least squared error instead of those of the largest values.

    Raises:
      ValueError: for another name, and for `refine` where weights are always fitted.
    """
    if name not in WEIGHT_RECIPES:
        raise ValueError(
            f"weights: expected one of {', '.join(WEIGHT_RECIPES)}; found {name!r}"
        )
    recipe = WEIGHT_RECIPES[name]
    if rotation is not None:
        recipe = replace(recipe, rotation=rotation)
    if not refine:
        return recipe
    if isinstance(recipe, NVFP4Recipe):
        return replace(recipe, refine=True)
    if isinstance(recipe, UniformRecipe):
        return replace(recipe, grid="bgr")
    raise ValueError(
        f"refine: expected nvfp4 or uniform weights, found {name!r}, which is always "
        "fitted"
    )


__all__ = ["WEIGHT_RECIPES", "weight_recipe"]
