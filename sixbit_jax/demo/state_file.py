"""The training state between calls: master weights and step, in files of limited size.

Adam's moments and the average are not kept. They remember a hundred and a thousand
steps of a run of thousands, start again under the next call's warm-up, and would make
the files four times as large.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sixbit_jax import files
from sixbit_jax.checksums import files_under
from sixbit_jax.demo.recipe import Recipe, TrainState, init_state

MAX_BYTES = 15 * 2**20


def save_state(folder: Path, state: TrainState, *, max_bytes: int = MAX_BYTES) -> None:
    """Write what the next call needs, replacing what is there when it is complete.

    Args:
        folder: gets `weights-0.npy`, `weights-1.npy`, ... (the parameters one after
            the other, float32) and `step.npy`.
        state: the state of the run.
        max_bytes: limit of each file.
    """
    leaves = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(state.params)]
    flat = np.concatenate(leaves)
    each = (max_bytes - 1024) // flat.itemsize
    with files.replaced_directory(folder, foreign=_foreign) as partial:
        partial.mkdir()
        for number, start in enumerate(range(0, flat.size, each)):
            np.save(partial / f"weights-{number}.npy", flat[start : start + each])
        np.save(partial / "step.npy", np.asarray(state.step))


def _foreign(folder: Path) -> list[str]:
    """Files of a folder that are none of a state, of earlier versions either."""
    ours = re.compile(r"weights-\d+\.npy|step\.npy")
    return [file.name for file in files_under(folder) if not ours.fullmatch(file.name)]


def load_state(folder: Path, model: nnx.Module, recipe: Recipe) -> TrainState:
    """Continue from a state that `save_state` wrote.

    Args:
        folder: where it was written.
        model: the network; gives structure and shapes.
        recipe: the numbers of the optimizer.

    Returns:
        The state, with the average at the weights and new moments.

    Raises:
        ValueError: the files hold another number of parameters.
    """
    _, state = init_state(model, recipe)
    leaves, structure = jax.tree.flatten(state.params)
    count = len(list(folder.glob("weights-*.npy")))
    parts = [np.load(folder / f"weights-{number}.npy") for number in range(count)]
    flat = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    expected = sum(leaf.size for leaf in leaves)
    if flat.size != expected:
        raise ValueError(
            f"{folder}: expected the {expected} parameters of this network, found "
            f"{flat.size} in {count} files"
        )
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    arrays = [
        jnp.array(part.reshape(leaf.shape))
        for part, leaf in zip(np.split(flat, ends), leaves, strict=True)
    ]
    params = jax.tree.unflatten(structure, arrays)
    step = jnp.asarray(np.load(folder / "step.npy"))
    return state._replace(
        params=params, average=jax.tree.map(jnp.copy, params), step=step
    )
