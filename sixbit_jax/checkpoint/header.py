"""`sixbit.json`: what a checkpoint directory holds, parameter by parameter."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sixbit_jax import checksums
from sixbit_jax.checkpoint.directory import CheckpointError
from sixbit_jax.formats import stored_layout
from sixbit_jax.reading.json_file import read_json_object
from sixbit_jax.reading.messages import brief, named, several
from sixbit_jax.reading.regular_file import is_there

FORMAT_VERSION = 1
HEADER_NAME = "sixbit.json"
PAIR_NAME = "pair.json"
_MOST_LAYERS = 100_000
# A block larger than this is written as several items, so that the memory a
# conversion needs is bounded by this and not by the size of a model's blocks.
_ITEM_BYTES = 512 * 2**20
_DENSE = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class ParameterSpec:
    """How one parameter is stored.

    Attributes:
      shape: logical shape; of one layer, for a parameter of a stack.
      dtype: "float32", "float16", "bfloat16", or the name of a compressed format
        (`StoredWeight.format_name`): "nvfp4", "uniform4", ...
      rotation: block Hadamard folded in along the last axis; 0 for none.
    """

    shape: tuple[int, ...]
    dtype: str
    rotation: int = 0

    def __post_init__(self):
        if not self.compressed:
            return
        try:
            found = stored_layout(self.dtype, self.shape)
        except ValueError as error:
            raise CheckpointError(f"a {self.dtype} parameter: {error}") from error
        if found is None:
            raise CheckpointError(
                f"parameter dtype: expected one of {_DENSE} or the name of a stored "
                f"format, found {self.dtype!r}"
            )

    @property
    def compressed(self) -> bool:
        """Whether it is a `StoredWeight`, of several arrays."""
        return self.dtype not in _DENSE

    @property
    def size(self) -> int:
        """Number of logical values."""
        return math.prod(self.shape)

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of each stored array, by name."""
        if not self.compressed:
            return {"value": (self.shape, jnp.dtype(self.dtype))}
        found = stored_layout(self.dtype, self.shape)
        assert found is not None  # checked above
        return found[1]

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return sum(math.prod(s) * d.itemsize for s, d in self.arrays.values())


@dataclass(frozen=True)
class Stack:
    """Layers of the same parameters, one after the other."""

    length: int
    parameters: Mapping[str, ParameterSpec]


@dataclass(frozen=True)
class Item:
    """One Orbax item: parameters of one layer of a stack, or of no stack.

    Attributes:
      name: name of the item's directory.
      stack: name of the stack, or "" for parameters outside of stacks.
      index: layer of the stack.
      parameters: by path within the layer, or by full path outside of stacks.
    """

    name: str
    stack: str
    index: int
    parameters: Mapping[str, ParameterSpec]

    def path(self, name: str) -> str:
        """Full path of a parameter, with the layer's number in it."""
        return f"{self.stack}.{self.index}.{name}" if self.stack else name


@dataclass(frozen=True)
class Header:
    """The contents of `sixbit.json`.

    Attributes:
      model_class: class name that diffusers gives the network.
      config: the network's configuration, as in diffusers' `config.json`.
      parameters: parameters outside of stacks, by path.
      stacks: stacked parameters, by the name of the stack.
      scheduler: configuration of the scheduler, if the source had one.
      quantization: the recipe that made the weights.
      source: where the parameters came from, and the accounting of its keys.
      item_bytes: bytes of each item's files, by the name of the item.
      checksums: the checksums of each item's files, by the name of the item
        (`checksums.of_directory`); empty in directories of earlier versions.
    """

    model_class: str
    config: Mapping[str, Any]
    parameters: Mapping[str, ParameterSpec]
    stacks: Mapping[str, Stack]
    scheduler: Mapping[str, Any] | None = None
    quantization: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    item_bytes: Mapping[str, int] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def items(self) -> Iterator[Item]:
        """The Orbax items of the directory, in the order of writing."""
        for name, stack in self.stacks.items():
            parts = _split(stack.parameters)
            for index in range(stack.length):
                for number, part in enumerate(parts):
                    suffix = f".{number}" if len(parts) > 1 else ""
                    yield Item(f"{name}.{index}{suffix}", name, index, part)
        for number, part in enumerate(_split(self.parameters)):
            yield Item(f"rest.{number}" if number else "rest", "", 0, part)

    def specs(self) -> Iterator[tuple[ParameterSpec, int]]:
        """Every parameter with the number of layers that have it."""
        for spec in self.parameters.values():
            yield spec, 1
        for stack in self.stacks.values():
            for spec in stack.parameters.values():
                yield spec, stack.length

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters as stored."""
        return sum(spec.nbytes * count for spec, count in self.specs())

    @property
    def num_parameters(self) -> int:
        """Number of logical values."""
        return sum(spec.size * count for spec, count in self.specs())

    def to_json(self) -> str:
        """The text of `sixbit.json`, with a checksum of its own."""
        # As they are read again: without tuples, with names as keys.
        values = json.loads(json.dumps(asdict(self)))
        return json.dumps({**values, "checksum": seal(values)}, indent=1) + "\n"


def seal(values: Mapping[str, Any]) -> str:
    """The checksum of a header's values, however they are laid out in the file."""
    kept = {name: value for name, value in values.items() if name != "checksum"}
    return checksums.of_bytes(json.dumps(kept, sort_keys=True).encode())


def _split(parameters: Mapping[str, ParameterSpec]) -> list[dict[str, ParameterSpec]]:
    parts: list[dict[str, ParameterSpec]] = []
    room = 0
    for name, spec in sorted(parameters.items()):
        if not parts or spec.nbytes > room:
            parts.append({})
            room = _ITEM_BYTES
        parts[-1][name] = spec
        room -= spec.nbytes
    return parts


_FIELDS = {field.name for field in fields(Header)}
_ADDED = {"checksums", "checksum"}  # by later versions of this format


def _whole(value: Any, what: str) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{what}: expected a whole number, found {value!r}")
    return value


def _specs_from_json(values: Mapping[str, Any]) -> dict[str, ParameterSpec]:
    specs = {}
    for name, value in values.items():
        shape = tuple(_whole(size, f"{name}: shape") for size in value["shape"])
        if not isinstance(value["dtype"], str):
            raise TypeError(f"{name}: dtype: expected a name, found {value['dtype']!r}")
        rotation = _whole(value["rotation"], f"{name}: rotation")
        specs[name] = ParameterSpec(shape, value["dtype"], rotation)
    return specs


def _stacks_from_json(values: Mapping[str, Any]) -> dict[str, Stack]:
    stacks = {}
    for name, stack in values.items():
        length = _whole(stack["length"], f"{name}: length")
        if not 1 <= length <= _MOST_LAYERS:
            raise TypeError(
                f"{name}: length: expected 1 to {_MOST_LAYERS}, found {length}"
            )
        stacks[name] = Stack(length, _specs_from_json(stack["parameters"]))
    return stacks


def _json_of(path: Path) -> dict[str, Any]:
    """The contents of `sixbit.json`, once it is known to be one of this format."""
    file = path / HEADER_NAME
    if not is_there(file):
        if is_there(path / PAIR_NAME):
            raise CheckpointError(
                f"{path}: expected a directory with one network, found a pair of two "
                f"({PAIR_NAME}): `load_pair` loads both, and {path / 'high_noise'} or "
                f"{path / 'low_noise'} is one of them"
            )
        raise CheckpointError(
            f"{path}: expected a checkpoint directory with {HEADER_NAME} (made by "
            "`sixbit convert`), found none"
        )
    try:
        values = read_json_object(file)
    except (ValueError, OSError) as error:
        raise CheckpointError(str(error)) from error
    version = values.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: expected format_version {FORMAT_VERSION}, found {brief(version)}"
        )
    if unknown := sorted(values.keys() - _FIELDS - _ADDED):
        raise CheckpointError(
            f"{file}: expected the fields of format {FORMAT_VERSION}, found "
            f"{', '.join(several(map(named, unknown)))} besides"
        )
    if _ADDED & values.keys() and values.get("checksum") != seal(values):
        raise CheckpointError(
            f"{file}: expected contents with the checksum {values.get('checksum')}, "
            f"found {seal(values)}: damaged or changed by hand"
        )
    return values


def read_header(path: str | os.PathLike) -> Header:
    """Reads `sixbit.json` of a checkpoint directory.

    Args:
      path: the directory.

    Raises:
      CheckpointError: if the file is absent, damaged, or of another version.
    """
    values = _json_of(Path(path))
    file = Path(path) / HEADER_NAME
    try:
        scheduler = values["scheduler"]
        header = Header(
            model_class=values["model_class"],
            config=dict(values["config"]),
            parameters=_specs_from_json(values["parameters"]),
            stacks=_stacks_from_json(values["stacks"]),
            scheduler=None if scheduler is None else dict(scheduler),
            quantization=dict(values["quantization"]),
            source=dict(values["source"]),
            item_bytes=dict(values["item_bytes"]),
            checksums=dict(values.get("checksums", {})),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: expected the fields of format {FORMAT_VERSION}, found {error!r}"
        ) from error
    names = {item.name for item in header.items()}
    if header.checksums and names != header.checksums.keys():
        differing = sorted(names ^ header.checksums.keys())
        raise CheckpointError(
            f"{file}: expected a checksum for each item, found items or checksums "
            f"alone: {', '.join(differing)}"
        )
    return header
