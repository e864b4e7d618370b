"""The world of the small pipeline: what a video of it shows, as eight integers.

One object moves, another stands still, in front of a textured wall; the camera stands,
pans or moves closer. Objects have hues, the wall has almost none, so that both can be
told apart from pixels alone.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

FRAMES = 25
SIZE = 128

SHAPES = ("ball", "cube", "pyramid", "ring")
# Red, green and blue in [0, 1]; hues at least 50 degrees apart.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.92, 0.10, 0.10),
    "yellow": (0.95, 0.82, 0.08),
    "green": (0.10, 0.78, 0.20),
    "cyan": (0.10, 0.85, 0.90),
    "blue": (0.14, 0.18, 0.95),
    "magenta": (0.90, 0.14, 0.78),
}
COLOUR_NAMES = tuple(COLOURS)
MOTIONS = ("left", "right", "up", "down", "grows")
TEXTURES = ("checkered", "striped", "dotted")
TONES = ("dark", "light")
CAMERAS = ("still", "pans left", "pans right", "zooms in")

# One combination in this many is kept from training.
HELD_OUT_EVERY = 10


class Attributes(NamedTuple):
    """What a video shows; every field int32 [batch], an index into the names above."""

    shape: Int[Array, " batch"]
    """Of the object that moves."""
    colour: Int[Array, " batch"]
    motion: Int[Array, " batch"]
    other_shape: Int[Array, " batch"]
    """Of the object that stands still."""
    other_colour: Int[Array, " batch"]
    """Never that of the moving object."""
    texture: Int[Array, " batch"]
    tone: Int[Array, " batch"]
    camera: Int[Array, " batch"]


NAMES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOUR_NAMES,
    "motion": MOTIONS,
    "other_shape": SHAPES,
    "other_colour": COLOUR_NAMES,
    "texture": TEXTURES,
    "tone": TONES,
    "camera": CAMERAS,
}


def from_rows(rows: Int[np.ndarray | Array, "batch 8"]) -> Attributes:
    """Rows of eight integers as named fields."""
    return Attributes(*jnp.moveaxis(jnp.asarray(rows, jnp.int32), -1, 0))


def combinations() -> Int[np.ndarray, "combinations 8"]:
    """Every attribute vector whose two colours differ, int32, sorted."""
    ranges = [range(len(names)) for names in NAMES.values()]
    rows = np.asarray(list(itertools.product(*ranges)), np.int32)
    return rows[rows[:, 1] != rows[:, 4]]


def is_held_out(
    rows: Int[np.ndarray, "batch 8"],
) -> Bool[np.ndarray, " batch"]:
    """Whether training never sees a combination: one in ten, by a fixed hash."""
    # Splitmix64 of the mixed-radix number of the row: the same on every machine.
    sizes = [len(names) for names in NAMES.values()]
    number = np.zeros(len(rows), np.uint64)
    for column, size in enumerate(sizes):
        number = number * np.uint64(size) + rows[:, column].astype(np.uint64)
    with np.errstate(over="ignore"):
        z = number + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return z % np.uint64(HELD_OUT_EVERY) == 0


def sample_rows(key: Key[Array, ""], batch: int) -> Int[Array, "batch 8"]:
    """Uniform attribute vectors, held-out ones among them; may be traced."""
    keys = jax.random.split(key, len(NAMES))
    fields = {
        name: jax.random.randint(k, (batch,), 0, len(names))
        for k, (name, names) in zip(keys, NAMES.items(), strict=True)
    }
    count = len(COLOUR_NAMES)
    step = 1 + fields["other_colour"] % (count - 1)
    fields["other_colour"] = (fields["colour"] + step) % count
    return jnp.stack(list(fields.values()), axis=-1).astype(jnp.int32)
