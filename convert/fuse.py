"""`fuse_lora`: a LoRA added to a network in memory, quantized or not."""

import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.errors import ConversionError
from convert.lora import Difference, LoraChoice, LowRank, Update
from convert.lora_reader import open_lora
from convert.rules import Rule, collapse
from convert.tables import table_for
from sixbit_jax.formats import CorrectedArray, StoredWeight
from sixbit_jax.reading.messages import several


def fuse_lora(
    model: Any, file: str | os.PathLike | LoraChoice, strength: float = 1.0
) -> Any:
    """A copy of a network with a LoRA in its weights, or beside them.

    Plain weights become W + strength (alpha / r) up down, computed in float32 and
    rounded to their dtype. A stored weight (NVFP4 and others) stays as it is and the
    LoRA beside it, as the low-rank correction of a `CorrectedArray`: it reads the
    activation before it is quantized, costs two thin products per linear and step, and
    is not rounded. Fused twice, with strengths of opposite signs, it is gone.

    Args:
      model: a ported transformer; it is not changed, and what stays is shared.
      file: see `convert.convert`; `high=` or `low=` takes that half of a file with
        updates of both networks of a pair.
      strength: factor of the whole update.

    Raises:
      ConversionError: for what is no LoRA of this network (lists all keys), and for
        updates of quantized weights that are not of low rank.
    """
    choice = file if isinstance(file, LoraChoice) else LoraChoice.parse(file)
    choice = LoraChoice(choice.file, choice.strength * strength, half=choice.network)
    graph, state = nnx.split(model)
    flat = dict(nnx.to_flat_state(state))
    places = _places(model, flat)
    shapes = {key: place.source_shape for key, place in places.items()}
    lora = open_lora(choice, shapes, model=type(model).class_name)
    by_path: dict[tuple, dict[int | None, tuple[Rule, tuple[Update, ...]]]] = {}
    for key, updates in lora.updates.items():
        place = places[key]
        by_path.setdefault(place.path, {})[place.layer] = (place.rule, updates)
    _check_stored(flat, by_path)
    for path, layers in by_path.items():
        value = flat[path].get_value()
        if isinstance(value, StoredWeight):
            changed = _beside(value, layers)
        else:
            changed = _into(value, layers)
        flat[path] = flat[path].replace(changed)
    return nnx.merge(graph, nnx.from_flat_state(flat))


class _Place:
    """Where a parameter of a checkpoint lies in the network.

    Attributes:
      path: of the variable.
      layer: of a stack, or None.
      rule: between the checkpoint's layout and ours.
      source_shape: in the checkpoint.
    """

    def __init__(self, path: tuple, layer: int | None, rule: Rule, shape: tuple):
        self.path, self.layer, self.rule = path, layer, rule
        self.source_shape = rule.transform.source_shape(shape)


def _places(model: Any, flat: Mapping[tuple, Any]) -> dict[str, _Place]:
    """The place of every parameter, by diffusers' key."""
    table = table_for({"_class_name": type(model).class_name})
    found = {}
    for path, variable in flat.items():
        name = ".".join(map(str, path))
        shape = tuple(variable.get_value().shape)
        stack, _, leaf = name.partition(".")
        if stack not in type(model).stack_names:
            key, rule = table.source_of(name)
            found[key] = _Place(path, None, rule, shape)
            continue
        for layer in range(shape[0]):
            key, rule = table.source_of(f"{stack}.{layer}.{leaf}")
            found[key] = _Place(path, layer, rule, shape[1:])
    return found


def _check_stored(flat: Mapping[tuple, Any], by_path: Mapping[tuple, Any]) -> None:
    """Refuses what a stored weight cannot have beside it.

    Raises:
      ConversionError: lists all of them.
    """
    problems = []
    for path, layers in by_path.items():
        value = flat[path].get_value()
        name = ".".join(map(str, path))
        if not isinstance(value, StoredWeight):
            continue
        if any(isinstance(u, Difference) for _, us in layers.values() for u in us):
            problems.append(f"{name}: a full difference (diff), which has no low rank")
        if isinstance(value, CorrectedArray) and value.factors.shape[-1] != 1:
            problems.append(f"{name}: a correction per frame is there already")
    if problems:
        raise ConversionError(
            "\n  ".join(
                [
                    "fuse_lora: expected updates that a quantized weight can have "
                    "beside it (or the unquantized weights; `convert --lora` fuses "
                    "before it quantizes), found",
                    *several(collapse(problems)),
                ]
            )
        )


def _into(value: Any, layers: Mapping[int | None, tuple[Rule, Any]]) -> Any:
    """A plain parameter with its updates added, in float32."""
    for layer, (rule, updates) in layers.items():
        old = value if layer is None else value[layer]
        array = np.array(rule.transform.backward(np.asarray(old, np.float32)))
        for update in updates:
            update.add_to(array)
        new = jnp.asarray(rule.transform.forward(array)).astype(value.dtype)
        if not bool(jnp.isfinite(new).all()):
            raise ConversionError(
                f"fuse_lora: expected sums within {value.dtype}, found others"
            )
        value = new if layer is None else value.at[layer].set(new)
    return value


def _beside(value: StoredWeight, layers: Mapping[int | None, Any]) -> CorrectedArray:
    """A stored weight with low-rank updates beside it; all layers get one rank."""
    *lead, rows, columns = value.shape
    parts: dict[int | None, tuple[np.ndarray, np.ndarray]] = {}
    for layer, (_, updates) in layers.items():
        pairs = [u.matrices() for u in updates if isinstance(u, LowRank)]
        down = np.concatenate([down for down, _ in pairs])
        parts[layer] = (down, np.concatenate([up for _, up in pairs], 1))
    rank = max(down.shape[0] for down, _ in parts.values())
    down = np.zeros((*lead, rank, columns), np.float32)
    up = np.zeros((*lead, rows, rank), np.float32)
    for layer, (a, b) in parts.items():
        index = () if layer is None else layer
        down[index][: len(a)] = a
        up[index][:, : len(a)] = b
    inside, live = value, True
    downs, ups = [jnp.asarray(down)], [jnp.asarray(up)]
    if isinstance(value, CorrectedArray):
        inside, live = value.weight, value.live
        downs.insert(0, value.down)
        # The correction that is there keeps its factor.
        ups.insert(0, value.up * value.factors[..., None, :])
    return CorrectedArray(
        inside,
        jnp.concatenate(downs, -2),
        jnp.concatenate(ups, -1),
        jnp.ones((*lead, 1), jnp.float32),
        live=live,
    )


__all__ = ["fuse_lora"]
