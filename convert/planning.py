"""How every parameter of a conversion is stored, decided from headers alone."""

from collections.abc import Mapping
from typing import Any

from convert.choices import DTYPES, ROTATIONS, WEIGHTS
from convert.errors import ConversionError
from convert.nvfp4_dialects import PackedInfo, cropped
from convert.reader import Source
from convert.rules import Assignment, RuleTable
from convert.safetensors_file import TensorInfo
from convert.tables import table_for
from convert.values import kept_dtype
from sixbit_jax import components
from sixbit_jax.checkpoint import Header, ParameterSpec, Stack, parameter_shapes
from sixbit_jax.methods.weights import weight_recipe
from sixbit_jax.quantizers.nvfp4 import NVFP4Recipe
from sixbit_jax.quantizers.storage import WeightRecipe, rotation_of
from sixbit_jax.sampling import schedulers

# Weights that are packed already are kept, where the network has them quantized.
_AS_PACKED = NVFP4Recipe(rotation=0)


def check_options(
    dtype: str, weights: str | WeightRecipe, rotation: int | None, refine: bool
) -> None:
    options: dict[str, tuple[Any, tuple[Any, ...]]] = {"dtype": (dtype, DTYPES)}
    if isinstance(weights, str):
        options["weights"] = (weights, WEIGHTS)
        options["rotation"] = (rotation, (*ROTATIONS, None))
    elif refine or rotation is not None:
        raise ValueError(
            "rotation, refine: expected neither beside a recipe, which says both, "
            f"found rotation={rotation!r}, refine={refine!r}"
        )
    for name, (value, allowed) in options.items():
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {allowed}, found {value!r}")


def chosen_recipe(
    weights: str | WeightRecipe, rotation: int | None, refine: bool
) -> WeightRecipe | None:
    """What is done with weights; None keeps them."""
    if not isinstance(weights, str):
        return weights
    if weights != "keep":
        return weight_recipe(weights, rotation=rotation, refine=refine)
    if refine:
        raise ValueError("refine: expected quantized weights, found weights='keep'")
    return None


def per_layer(
    stacked: Mapping[str, tuple[int, ...]], table: RuleTable
) -> dict[str, tuple[int, ...]]:
    """Shapes by path, one path per layer of a stack."""
    shapes = {}
    for path, shape in stacked.items():
        stack, _, leaf = path.partition(".")
        if stack in table.stacks:
            for layer in range(shape[0]):
                shapes[f"{stack}.{layer}.{leaf}"] = shape[1:]
        else:
            shapes[path] = shape
    return shapes


def _without_padding(
    found: Source, table: RuleTable, shapes: Mapping[str, tuple[int, ...]]
) -> Mapping[str, TensorInfo]:
    """The tensors, packed ones without the zeros that some writers add."""
    if found.packed.dialect is None:
        return found.tensors
    tensors = dict(found.tensors)
    for path, shape in shapes.items():
        key, rule = table.source_of(path)
        info = tensors.get(key)
        if isinstance(info, PackedInfo):
            tensors[key] = cropped(info, rule.transform.source_shape(tuple(shape)))
    return tensors


def _check_scheduler(found: Source) -> None:
    """Refuses a scheduler's configuration that sampling would refuse.

    A class that is not supported is kept by name: `sample` takes another scheduler.
    """
    config = found.scheduler
    if config is None:
        return
    name = config.get("_class_name")
    other = isinstance(name, str) and name.isidentifier() and len(name) < 100
    if other and name not in schedulers.CLASSES:
        return
    try:
        schedulers.from_config(config)
    except ValueError as error:
        raise ConversionError(f"scheduler_config.json: {error}") from error


class _Storage:
    """Decides the format of parameters, and notes what could not be rotated.

    Attributes:
      unrotated: weights of sites whose width the rotation does not divide.
    """

    def __init__(
        self, table: RuleTable, recipe: WeightRecipe | None, dtype: str, packed: bool
    ):
        self._stacks, self._recipe, self._dtype = table.stacks, recipe, dtype
        self._packed = packed
        network: Any = components.get(table.model_class)[1]
        self._role = network.weight_role
        self.unrotated: list[str] = []

    def _spec(
        self, path: str, shape: tuple[int, ...], layers: list[Assignment]
    ) -> ParameterSpec:
        role = self._role(path)
        packed = all(isinstance(layer.tensor, PackedInfo) for layer in layers)
        chosen = _AS_PACKED if packed else self._recipe
        if chosen is not None and role is not None:
            turned = rotation_of(chosen, role, shape[-1])
            if turned is not None:
                if self._packed:
                    # Packed weights are not rotated, and linears of a site are alike.
                    turned = 0
                elif turned == 0 and role == "site" and chosen.rotation:
                    self.unrotated.append(path)
                return ParameterSpec(shape, chosen.format_name, turned)
        kept = kept_dtype(*(layer.tensor.dtype for layer in layers))
        return ParameterSpec(shape, kept if self._dtype == "keep" else self._dtype)

    def specs(
        self,
        stacked: Mapping[str, tuple[int, ...]],
        assigned: Mapping[str, Assignment],
    ) -> tuple[dict[str, ParameterSpec], dict[str, Stack]]:
        """Of the parameters outside of stacks, and of the stacks."""
        plain: dict[str, ParameterSpec] = {}
        stacks: dict[str, dict[str, ParameterSpec]] = {n: {} for n in self._stacks}
        lengths = dict.fromkeys(self._stacks, 0)
        for path, shape in stacked.items():
            stack, _, leaf = path.partition(".")
            if stack in stacks:
                lengths[stack] = shape[0]
                layers = [assigned[f"{stack}.{i}.{leaf}"] for i in range(shape[0])]
                stacks[stack][leaf] = self._spec(path, shape[1:], layers)
            else:
                plain[path] = self._spec(path, shape, [assigned[path]])
        return plain, {n: Stack(lengths[n], parts) for n, parts in stacks.items()}


def plan(
    found: Source,
    *,
    dtype: str,
    weights: str | WeightRecipe,
    rotation: int | None = None,
    refine: bool = False,
) -> tuple[Header, dict[str, Assignment]]:
    """Decides how every parameter is stored, from the headers of the files alone.

    Args:
      found: the source.
      dtype, weights, rotation, refine: options of `convert`.

    Returns:
      The header of the directory to write, and the tensor of every parameter by path.

    Raises:
      ConversionError: for an unknown network, an unsupported configuration, and keys
        that do not fit it.
      ValueError: for unknown values of the options.
    """
    check_options(dtype, weights, rotation, refine)
    recipe = chosen_recipe(weights, rotation, refine)
    table = table_for(found.config, found.tensors.keys())
    # Packed weights are described by the header of ours.
    config = {k: v for k, v in found.config.items() if k != "quantization_config"}
    try:
        stacked = parameter_shapes(table.model_class, config)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ConversionError(f"{found.directory / 'config.json'}: {error}") from error
    _check_scheduler(found)
    shapes = per_layer(stacked, table)
    assigned, ignored = table.assign(_without_padding(found, table, shapes), shapes)
    storage = _Storage(table, recipe, dtype, found.packed.dialect is not None)
    plain, stacks = storage.specs(stacked, assigned)
    header = Header(
        model_class=table.model_class,
        config=config,
        parameters=plain,
        stacks=stacks,
        scheduler=found.scheduler,
        quantization=_described(found, recipe, dtype, storage.unrotated),
        source=_source_record(found, assigned, ignored),
    )
    return header, assigned


def _described(
    found: Source, recipe: WeightRecipe | None, dtype: str, unrotated: list[str]
) -> dict[str, object]:
    """How the weights are stored, for the header."""
    how: dict[str, object] = {"weights": "keep", "dtype": dtype}
    if recipe is not None:
        turned = 0 if found.packed.dialect is not None else recipe.rotation
        how |= {"weights": recipe.format_name, "method": recipe.fit, "rotation": turned}
    if unrotated:
        how["unrotated"] = unrotated
    if found.packed.facts is not None:
        how["packed"] = dict(found.packed.facts)
    return how


def _source_record(
    found: Source, assigned: Mapping[str, Assignment], ignored: list[str]
) -> dict[str, Any]:
    """Where the parameters came from, for the header."""
    dtypes: dict[str, int] = {}
    for chosen in assigned.values():
        name = chosen.tensor.dtype_name
        dtypes[name] = dtypes.get(name, 0) + 1
    return {
        "files": [file.name for file in found.files],
        "bytes": found.nbytes,
        "dtypes": dtypes,
        "keys_read": len(assigned),
        "keys_ignored": [*ignored, *found.packed.unused],
        **({"loras": list(found.loras)} if found.loras else {}),
        **({"left": dict(found.left)} if found.left else {}),
    }


__all__ = ["check_options", "chosen_recipe", "per_layer", "plan"]
