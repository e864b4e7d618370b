"""Checkpoints of a tuning run: one Orbax directory per iteration that was kept.

A checkpoint appears whole or not at all, and holds everything that the loop's next
iteration depends on.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from sixbit_jax import files
from sixbit_jax.checkpoint.directory import CheckpointError, new_directory

_NAME = re.compile(r"iteration_(\d{8})")
_NOTE = "run.json"


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))


def _named(tree: Any) -> tuple[dict[str, Any], list[str]]:
    """The leaves as nested dictionaries, and their paths in the order of the tree."""
    nested: dict[str, Any] = {}
    paths = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        # One name per level of the pytree; names of parameters hold dots.
        names = [
            jax.tree_util.keystr((key,), simple=True).replace(".", "-") for key in path
        ]
        node = nested
        for name in names[:-1]:
            node = node.setdefault(name, {})
        node[names[-1]] = leaf
        paths.append("/".join(names))
    return nested, paths


def save_tree(path: Path, tree: Any) -> None:
    """Writes a pytree of arrays to a new directory, as nested dictionaries."""
    nested, _ = _named(jax.tree.map(np.asarray, tree))
    with _checkpointer() as orbax:
        orbax.save(path.absolute(), args=ocp.args.PyTreeSave(nested))


def load_tree(path: Path, like: Any) -> Any:
    """Reads what `save_tree` wrote, as NumPy arrays in the structure of `like`.

    Raises:
      CheckpointError: it is damaged, or of another structure.
    """
    nested, paths = _named(like)
    try:
        wanted = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), nested
        )
        with _checkpointer() as orbax:
            found = orbax.restore(
                path.absolute(), args=ocp.args.PyTreeRestore(restore_args=wanted)
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    leaves, problems = [], []
    for name, expected in zip(paths, jax.tree.leaves(like), strict=True):
        node: Any = found
        for part in name.split("/"):
            node = node.get(part) if isinstance(node, dict) else None
        shape = None if node is None else tuple(node.shape)
        if shape != tuple(expected.shape):
            problems.append(
                f"{name}: expected {tuple(expected.shape)}, found {shape or 'none'}"
            )
        leaves.append(node)
    if problems:
        raise CheckpointError("\n  ".join([f"{path}: another structure:", *problems]))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Attributes:
      folder: holds them; made when the first is saved.
      note: what the run is (options, data); a folder of another run is refused.
      keep: how many of the newest stay.
    """

    folder: Path
    note: dict[str, Any]
    keep: int = 2

    def __post_init__(self) -> None:
        file = self.folder / _NOTE
        if not file.is_file():
            return
        expected, found = (
            json.loads(json.dumps(self.note)),
            json.loads(file.read_text()),
        )
        differing = {
            key: (expected.get(key), found.get(key))
            for key in sorted({*expected, *found})
            if expected.get(key) != found.get(key)
        }
        if differing:
            raise CheckpointError(
                f"{self.folder}: checkpoints of another run; (expected, found): "
                f"{differing}"
            )

    def iterations(self) -> list[int]:
        """Iterations of the complete checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        matches = map(_NAME.fullmatch, (p.name for p in self.folder.iterdir()))
        return sorted(int(match[1]) for match in matches if match)

    def _path(self, iteration: int) -> Path:
        return self.folder / f"iteration_{iteration:08d}"

    def save(self, iteration: int, tree: Any) -> None:
        """Saves a pytree of arrays; the oldest checkpoints are removed after it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        note = self.folder / _NOTE
        if not note.is_file():
            text = json.dumps(self.note, indent=1, sort_keys=True)
            files.write_text(note, text + "\n")
        if iteration not in self.iterations():
            with new_directory(self._path(iteration)) as partial:
                save_tree(partial / "state", tree)
        for old in self.iterations()[: -self.keep]:
            shutil.rmtree(self._path(old))
        # What runs that were killed while they saved have left.
        files.remove_dead(self.folder)

    def restore(self, like: Any) -> Any | None:
        """The newest checkpoint in the structure of `like`, or None.

        Raises:
          CheckpointError: it is damaged.
        """
        found = self.iterations()
        return load_tree(self._path(found[-1]) / "state", like) if found else None


__all__ = ["Checkpoints", "load_tree", "save_tree"]
