"""Which weight of a network is stored how: the one rule, for functions and commands.

The network says what a weight does (`weight_role`), a recipe says what is done with
weights of that role, and `rotation_of` puts both together. `quantize` asks it for
models in memory, the converter for checkpoints on disk.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from flax import nnx

from sixbit_jax.formats import StoredWeight


class WeightRecipe(Protocol):
    """What is done with weights: `NVFP4Recipe`, `UniformRecipe`, `ResidualRecipe`.

    Attributes:
      multiple: what the format needs the input width K to be a multiple of.
    """

    multiple: ClassVar[int]

    @property
    def rotation(self) -> int:
        """Width of the block Hadamard folded into the weights of sites; 0: none."""
        ...

    @property
    def small_batch(self) -> bool:
        """Whether linears that run on few rows are stored too; never rotated."""
        ...

    @property
    def format_name(self) -> str:
        """`StoredWeight.format_name` of what `compress` makes."""
        ...

    @property
    def fit(self) -> str:
        """How scales are found, in words, for the header of a checkpoint."""
        ...

    @property
    def compress(self) -> Callable[..., StoredWeight]:
        """The function (weight, *, rotation) -> stored weight."""
        ...


def rotation_of(recipe: WeightRecipe, role: str | None, in_features: int) -> int | None:
    """Rotation of a stored weight, or None if the weight stays as it is.

    A weight whose width the format does not take stays as it is; one that the rotation
    does not divide is stored without it. All linears of a site read the same
    activation, have the same width and so rotate as one.

    Args:
      recipe: what is done with weights.
      role: `weight_role` of the network.
      in_features: K of the weight.
    """
    if in_features % recipe.multiple:
        return None
    if role == "site":
        rotation = recipe.rotation
        return rotation if rotation and in_features % rotation == 0 else 0
    return 0 if role == "small_batch" and recipe.small_batch else None


def changed_weights(
    model: nnx.Module,
    recipe: WeightRecipe,
    change: Callable[[str, Any, int], Any],
) -> nnx.Module:
    """A copy of a model with the weights that a recipe stores replaced.

    Args:
      model: a ported network with plain weights.
      recipe: which weights are stored, and how they are rotated.
      change: (name, weight, rotation) -> the new weight.
    """
    graph, state = nnx.split(model)
    flat = dict(nnx.to_flat_state(state))
    for path, variable in flat.items():
        name = ".".join(map(str, path))
        role = model.weight_role(name)  # pyrefly: ignore[missing-attribute]
        if role is None:
            continue
        weight = variable.get_value()
        rotation = rotation_of(recipe, role, weight.shape[-1])
        if rotation is not None:
            flat[path] = variable.replace(change(name, weight, rotation))
    return nnx.merge(graph, nnx.from_flat_state(flat))


__all__ = ["WeightRecipe", "changed_weights", "rotation_of"]
