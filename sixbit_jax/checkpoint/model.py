"""Whole models: loading onto a device block by block, and saving from memory."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from sixbit_jax import components
from sixbit_jax.checkpoint.directory import CheckpointError
from sixbit_jax.checkpoint.header import Header, ParameterSpec, Stack
from sixbit_jax.checkpoint.items import (
    Arrays,
    CheckpointReader,
    CheckpointWriter,
    spec_of,
    value_of,
)
from sixbit_jax.checkpoint.placement import Placement, placement


def parameter_shapes(
    model_class: str, config: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters of a network, without making any.

    Args:
      model_class: class name that diffusers gives the network.
      config: contents of its `config.json`.

    Returns:
      Shape by path; stacked parameters have their leading layer axis.

    Raises:
      ValueError: for an unknown class and for values that the port does not support.
    """
    _, state = _abstract(model_class, config)
    return {path: tuple(v.get_value().shape) for path, v in _flat(state).items()}


def _abstract(model_class: str, config: Mapping[str, Any]) -> tuple[Any, nnx.State]:
    config_type, model_type = components.get(model_class)
    parsed = config_type.from_dict(config)
    abstract = nnx.eval_shape(lambda: model_type(parsed, rngs=nnx.Rngs(0)))
    return nnx.split(abstract)


def _flat(state: nnx.State) -> dict[str, nnx.Variable]:
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def _check(header: Header, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    stored = {name: spec.shape for name, spec in header.parameters.items()}
    for name, stack in header.stacks.items():
        for leaf, spec in stack.parameters.items():
            stored[f"{name}.{leaf}"] = (stack.length, *spec.shape)
    problems = [
        f"missing: {name} {list(shapes[name])}"
        for name in sorted(shapes.keys() - stored.keys())
    ]
    problems += [
        f"unexpected: {name} {list(stored[name])}"
        for name in sorted(stored.keys() - shapes.keys())
    ]
    problems += [
        f"{name}: expected {list(shapes[name])}, found {list(stored[name])}"
        for name in sorted(shapes.keys() & stored.keys())
        if shapes[name] != stored[name]
    ]
    if problems:
        raise CheckpointError(
            "\n  ".join([f"{path}: not the parameters of its config:", *problems])
        )


@partial(jax.jit, donate_argnums=0)
def _insert(stacked: Any, layer: Any, index: jax.Array) -> Any:
    """Writes one layer into preallocated stacks, in place."""
    return jax.tree.map(
        lambda whole, part: jax.lax.dynamic_update_index_in_dim(
            whole, part.astype(whole.dtype), index, 0
        ),
        stacked,
        layer,
    )


def _dtype(spec: ParameterSpec, stored: Any, dtype: Any) -> Any:
    return stored if dtype is None or spec.compressed else dtype


def load(
    path: str | os.PathLike,
    *,
    dtype: Any = None,
    verify: bool = True,
    mesh: Mesh | None = None,
) -> tuple[nnx.Module, Header]:
    """Loads a checkpoint directory; blocks are stacked on the device one by one.

    Host memory holds one item (at most one block) at a time.

    Args:
      path: directory that `sixbit convert` or `save` made.
      dtype: floating dtype of the parameters that are not compressed; None keeps the
        stored ones.
      verify: whether every item is held against its checksum; directories of earlier
        versions have none.
      mesh: devices that share a run (`sixbit_jax.make_mesh`). Every parameter goes to
        all of them; of the blocks' matrices, each along `fsdp` gets its part and no
        device ever holds the whole. Every process reads the directory, and puts the
        parts of its own devices there.

    Returns:
      The model, with a `StoredWeight` where the file has them, and the header.

    Raises:
      CheckpointError: if the directory is not a complete checkpoint of its config.
      ValueError: if no port of its model class exists.

    >>> import sixbit_jax
    >>> from sixbit_jax.demo.model import COGVIDEOX
    >>> model = COGVIDEOX.new(0, {"num_layers": 2})
    >>> _ = sixbit_jax.save(sixbit_jax.quantize(model), "model-nvfp4")
    >>> loaded, header = sixbit_jax.load("model-nvfp4")
    >>> loaded.config == model.config
    True
    """
    with CheckpointReader(Path(path), verify=verify) as reader:
        header = reader.header
        graph, state = _abstract(header.model_class, header.config)
        variables = _flat(state)
        shapes = {k: tuple(v.get_value().shape) for k, v in variables.items()}
        _check(header, shapes, reader.path)
        values: dict[str, Any] = {}
        layout = placement(mesh)
        stacks = {
            name: _allocate(s, dtype, layout) for name, s in header.stacks.items()
        }
        for item in header.items():
            arrays = reader.read(item)
            if item.stack:
                whole = stacks[item.stack]
                chosen = {name: whole[name] for name in arrays}
                layer = jax.tree.map(layout.layer, arrays)
                written = _insert(chosen, layer, jnp.int32(item.index))
                # Without waiting, several blocks of host memory would be in flight.
                whole.update(jax.block_until_ready(written))
                continue
            for name, spec in item.parameters.items():
                parts = {
                    k: layout.whole(a, _dtype(spec, a.dtype, dtype))
                    for k, a in arrays[name].items()
                }
                values[name] = value_of(parts, spec)
    for name, stack in header.stacks.items():
        for leaf, spec in stack.parameters.items():
            values[f"{name}.{leaf}"] = value_of(stacks[name][leaf], spec)
    flat = {
        keys: leaf.replace(values[".".join(map(str, keys))])
        for keys, leaf in nnx.to_flat_state(state)
    }
    return nnx.merge(graph, nnx.from_flat_state(flat)), header


def _allocate(stack: Stack, dtype: Any, layout: Placement) -> dict[str, Arrays]:
    return {
        name: {
            k: layout.zeros((stack.length, *shape), _dtype(spec, stored, dtype))
            for k, (shape, stored) in spec.arrays.items()
        }
        for name, spec in stack.parameters.items()
    }


def save(
    model: Any,
    path: str | os.PathLike,
    *,
    scheduler: Mapping[str, Any] | None = None,
    quantization: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
    stacks: Sequence[str] | None = None,
) -> Header:
    """Writes a model that is in memory as a checkpoint directory.

    Args:
      model: a model of `sixbit_jax.models`; weights may be a `StoredWeight`.
      path: the directory to make.
      scheduler: configuration of its scheduler.
      quantization: the recipe that made the weights.
      source: where the parameters came from.
      stacks: names of the submodules whose leaves have a leading layer axis; None
        takes those that the model names.

    Returns:
      The header that was written.

    Raises:
      CheckpointError: if `path` exists or cannot be written; nothing is left behind.

    >>> import sixbit_jax
    >>> from sixbit_jax.demo.model import COGVIDEOX
    >>> model = COGVIDEOX.new(0, {"num_layers": 2})
    >>> header = sixbit_jax.save(model, "model")
    >>> header.model_class
    'CogVideoXTransformer3DModel'
    """
    values = {k: v.get_value() for k, v in _flat(nnx.state(model)).items()}
    layered: dict[str, dict[str, Any]] = {
        stack: {
            name.removeprefix(f"{stack}."): values.pop(name)
            for name in sorted(values)
            if name.startswith(f"{stack}.")
        }
        for stack in (type(model).stack_names if stacks is None else stacks)
    }
    header = Header(
        model_class=type(model).class_name,
        config=model.config.to_dict() | {"_class_name": type(model).class_name},
        parameters={name: spec_of(value) for name, value in values.items()},
        stacks={
            name: Stack(
                next(iter(parts.values())).shape[0],
                {leaf: spec_of(_layer(value, 0)) for leaf, value in parts.items()},
            )
            for name, parts in layered.items()
        },
        scheduler=scheduler,
        quantization=quantization or {},
        source=source or {},
    )
    with CheckpointWriter(Path(path), header) as writer:
        for item in header.items():
            if item.stack:
                parts = layered[item.stack]
                chosen = {k: _layer(parts[k], item.index) for k in item.parameters}
            else:
                chosen = {k: values[k] for k in item.parameters}
            writer.write(item, chosen)
    return writer.header


def _layer(value: Any, index: int) -> Any:
    return jax.tree.map(lambda array: array[index], value)
