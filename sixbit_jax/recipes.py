"""Whole methods: weights, policy, routes and calibration targets by one name.

A method adds a module with its function and a line in `RECIPES`.
"""

from collections.abc import Callable

from sixbit_jax.methods.dvd_quant import dvd_quant
from sixbit_jax.methods.mpq_dm.recipe import mpq_dm_v2
from sixbit_jax.methods.q_vdit.recipe import q_vdit
from sixbit_jax.methods.recipe import Recipe
from sixbit_jax.methods.sixbit_diffusion import sixbit_diffusion

RECIPES: dict[str, Callable[[], Recipe]] = {
    "sixbit-diffusion": sixbit_diffusion,
    "dvd-quant": dvd_quant,
    "q-vdit": q_vdit,
    "mpq-dm-v2": mpq_dm_v2,
}
"""By the name that the command line uses."""


def recipe_of(name: str) -> Recipe:
    """The recipe of a name, with its defaults.

    Raises:
      ValueError: there is none.

    >>> from sixbit_jax.recipes import recipe_of
    >>> recipe_of("dvd-quant").name
    'dvd-quant'
    """
    if name not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}; found {name}")
    return RECIPES[name]()


__all__ = [
    "RECIPES",
    "Recipe",
    "dvd_quant",
    "mpq_dm_v2",
    "q_vdit",
    "recipe_of",
    "sixbit_diffusion",
]
