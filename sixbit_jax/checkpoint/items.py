"""Orbax items: nested dictionaries of arrays, one directory each.

A parameter `attn1.to_q.weight` is the leaf `["attn1"]["to_q"]["weight"]`; one in a
compressed format is a dictionary of its arrays in that place. Plain Orbax reads them.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from sixbit_jax import checksums
from sixbit_jax.checkpoint.directory import (
    CheckpointError,
    new_directory,
    reserve,
)
from sixbit_jax.checkpoint.header import (
    HEADER_NAME,
    Header,
    Item,
    ParameterSpec,
    read_header,
)
from sixbit_jax.files import shown
from sixbit_jax.formats import StoredWeight, stored_layout

Value = np.ndarray | jax.Array | StoredWeight
Arrays = dict[str, Any]

_SETTLE_SECONDS = 0.5


def _checkpointer() -> ocp.Checkpointer:
    # Weights hardly compress (5% at bf16, nothing at 4 bits), and compression would
    # double the memory and the time that writing takes.
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _lookup(tree: Mapping[str, Any], path: str) -> Any:
    for name in path.split("."):
        tree = tree[name]
    return tree


def arrays_of(value: Value) -> Arrays:
    """The stored arrays of a parameter, named as in `ParameterSpec.arrays`."""
    return value.arrays() if isinstance(value, StoredWeight) else {"value": value}


def value_of(arrays: Arrays, spec: ParameterSpec) -> Any:
    """The inverse of `arrays_of`, given how it is stored."""
    if not spec.compressed:
        return arrays["value"]
    found = stored_layout(spec.dtype, spec.shape)
    assert found is not None  # the spec has checked it
    return found[0].from_arrays(spec.dtype, arrays, spec.rotation)


def spec_of(value: Value) -> ParameterSpec:
    """How `value` would be stored."""
    if isinstance(value, StoredWeight):
        return ParameterSpec(tuple(value.shape), value.format_name, value.rotation)
    return ParameterSpec(tuple(value.shape), jnp.dtype(value.dtype).name)


def _mismatches(item: Item, arrays: Mapping[str, Arrays]) -> list[str]:
    """Differences between what the header says of an item and its arrays."""
    problems = []
    for path, spec in item.parameters.items():
        found = {k: (tuple(a.shape), a.dtype) for k, a in arrays[path].items()}
        if found != spec.arrays:
            problems.append(
                f"{item.path(path)}: expected {_describe(spec.arrays)}, found "
                f"{_describe(found)}"
            )
    return problems


def _describe(arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> str:
    return ", ".join(f"{k} {d}{list(s)}" for k, (s, d) in arrays.items())


class CheckpointWriter:
    """Writes a checkpoint directory item by item; it appears when all are there.

    ```python
    with CheckpointWriter("model", header) as writer:
        for item in header.items():
            writer.write(item, {path: make(path) for path in item.parameters})
    ```

    Args:
      path: the directory to make.
      header: what is going to be written; gets the sizes of the items at the end.

    Raises:
      CheckpointError: on entry, if `path` exists or there is no room for it; on exit,
        if an item of the header was not written. Nothing is left behind.
    """

    def __init__(self, path: str | os.PathLike, header: Header):
        self.path = Path(path)
        self.header = header
        self._item_bytes: dict[str, int] = {}
        self._checksums: dict[str, str] = {}
        self._directory = new_directory(self.path, expected_bytes=header.nbytes)

    def __enter__(self) -> Self:
        self._temporary = self._directory.__enter__()
        self._orbax = _checkpointer()
        return self

    def write(self, item: Item, values: Mapping[str, Value]) -> None:
        """Writes one item.

        Args:
          item: one of `header.items()`.
          values: its parameters, with the paths and in the formats of the item.

        Raises:
          CheckpointError: if the values are not those of the header, or the file
            system refuses them.
        """
        if set(values) != set(item.parameters):
            raise CheckpointError(
                f"item {item.name}: expected {sorted(item.parameters)}, found "
                f"{sorted(values)}"
            )
        arrays = {path: arrays_of(value) for path, value in values.items()}
        if problems := _mismatches(item, arrays):
            raise CheckpointError("\n  ".join([f"item {item.name}:", *problems]))
        # Orbax copies numpy arrays in; 0-d ones it wants as such, not as scalars.
        leaves = {
            path: (
                np.asarray(parts["value"])
                if "value" in parts
                else {k: np.asarray(a) for k, a in parts.items()}
            )
            for path, parts in arrays.items()
        }
        target = (self._temporary / item.name).absolute()
        size = sum(spec.nbytes for spec in item.parameters.values())
        try:
            reserve(self._temporary, size)
            self._orbax.save(target, args=ocp.args.PyTreeSave(_nest(leaves)))
        except (OSError, ValueError) as error:
            # Writes that Orbax had begun end after it gave up; deleting the directory
            # before that would let them make it again.
            time.sleep(_SETTLE_SECONDS)
            raise CheckpointError(
                f"{self.path}: writing {item.name}: {error}"
            ) from error
        self._item_bytes[item.name] = directory_bytes(target)
        self._checksums[item.name] = checksums.of_directory(target)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._orbax.close()
        if error is None:
            try:
                names = {item.name for item in self.header.items()}
                if missing := sorted(names - self._item_bytes.keys()):
                    raise CheckpointError(
                        f"{self.path}: items never written: {', '.join(missing)}"
                    )
                self.header = replace(
                    self.header,
                    item_bytes=self._item_bytes,
                    checksums=self._checksums,
                )
                header = self._temporary / HEADER_NAME
                header.write_text(self.header.to_json(), encoding="utf-8")
            except BaseException as problem:
                self._directory.__exit__(type(problem), problem, problem.__traceback__)
                raise
        self._directory.__exit__(kind, error, traceback)


class CheckpointReader:
    """Reads a checkpoint directory item by item, as numpy arrays.

    Args:
      path: the directory.
      verify: whether an item's files are held against its checksum before they are
        used. Directories of earlier versions have none.

    Attributes:
      header: its `sixbit.json`.

    Raises:
      CheckpointError: if the header is bad, or items are missing or truncated; lists
        all of them.
    """

    def __init__(self, path: str | os.PathLike, *, verify: bool = True):
        self.path = Path(path).absolute()
        try:
            str(self.path).encode()
        except UnicodeEncodeError as error:  # which TensorStore cannot open
            raise CheckpointError(
                f"expected a checkpoint directory with a path in UTF-8, found "
                f"{shown(self.path)}"
            ) from error
        self.header = read_header(self.path)
        self.verify = verify
        # Orbax reports a truncated file late, and from its threads.
        check_sizes(self.path, self.header)
        self._orbax = _checkpointer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._orbax.close()

    def read(self, item: Item) -> dict[str, Arrays]:
        """The stored arrays of every parameter of an item.

        Raises:
          CheckpointError: if the item is damaged or not what the header says.
        """
        if self.verify and (problem := damage(self.path, self.header, item.name)):
            raise CheckpointError(f"{self.path}: damaged item: {problem}")
        numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        wanted = {
            path: dict.fromkeys(spec.arrays, numpy) if spec.compressed else numpy
            for path, spec in item.parameters.items()
        }
        try:
            tree = self._orbax.restore(
                self.path / item.name,
                args=ocp.args.PyTreeRestore(restore_args=_nest(wanted)),
            )
        # Of the several layers below, each has errors of its own for damaged files.
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RuntimeError,
        ) as error:
            raise CheckpointError(
                f"{self.path}: reading {item.name}: {error}"
            ) from error
        arrays = {}
        for path, spec in item.parameters.items():
            leaf = _lookup(tree, path)
            arrays[path] = leaf if spec.compressed else {"value": leaf}
        if problems := _mismatches(item, arrays):
            raise CheckpointError(
                "\n  ".join([f"{self.path}: item {item.name}:", *problems])
            )
        return arrays


def check_sizes(path: Path, header: Header) -> None:
    """Finds missing and truncated items from the sizes of their files.

    Raises:
      CheckpointError: lists them.
    """
    problems = []
    for item in header.items():
        found = directory_bytes(path / item.name)
        expected = header.item_bytes.get(item.name)
        if found != expected:
            problems.append(f"{item.name}: expected {expected} bytes, found {found}")
    if problems:
        raise CheckpointError(
            "\n  ".join([f"{path}: missing or damaged items:", *problems])
        )


def damage(path: Path, header: Header, name: str) -> str | None:
    """What an item's checksum says against its files; None for nothing."""
    expected = header.checksums.get(name)
    if expected is None:
        return None
    found = checksums.of_directory(path / name)
    if found == expected:
        return None
    return f"{name}: expected files with the checksum {expected}, found {found}"


def verify(path: str | os.PathLike) -> tuple[Header, int]:
    """Reads every file of a checkpoint directory and checks its checksum.

    Args:
      path: the directory.

    Returns:
      Its header, and the bytes that were checked: 0 for a directory of an earlier
      version, which has no checksums.

    Raises:
      CheckpointError: if the header is bad, or items are missing, truncated or changed;
        lists all of them.
    """
    path = Path(path).absolute()
    header = read_header(path)
    check_sizes(path, header)
    found = [damage(path, header, item.name) for item in header.items()]
    if problems := [problem for problem in found if problem is not None]:
        raise CheckpointError("\n  ".join([f"{path}: damaged items:", *problems]))
    return header, sum(header.item_bytes[name] for name in header.checksums)


def foreign(path: Path) -> list[str]:
    """Files in a checkpoint directory that its header does not know as they are.

    Raises:
      CheckpointError: if it is no checkpoint directory.
    """
    header = read_header(path)
    names = {item.name for item in header.items()}
    found = []
    for entry in sorted(path.iterdir()):
        if entry.name not in names:
            if entry.name not in (HEADER_NAME, checksums.MANIFEST):
                found.append(entry.name)
        elif entry.is_symlink():
            found.append(f"{entry.name} (a link)")
        elif directory_bytes(entry) != header.item_bytes[entry.name] or damage(
            path, header, entry.name
        ):
            found.append(f"{entry.name} (changed)")
    return found


def directory_bytes(path: str | os.PathLike) -> int:
    """Bytes of all files under a directory."""
    return sum(f.stat().st_size for f in Path(path).rglob("*") if f.is_file())
