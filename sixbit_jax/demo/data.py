"""Procedural videos: one shape that moves, grows or shrinks on a plain background.

Everything is a pure function of a key and runs under `jax.jit`, so that training makes
its batches on the accelerator.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from sixbit_jax.demo import vocabulary

FRAMES = 13
SIZE = 32
# Extents in pixels. The smallest shapes still show their outline after a light blur,
# and every shape spans several of the network's 4x4 patches: with radii of 5 to 6.5 a
# run of 3,680 steps learned colours and motions but no shape.
_RADIUS = (6.5, 8.0)
_TRAVEL = (8.0, 11.0)
_SMALL_RADIUS = (4.8, 5.4)
_GROWTH = (1.7, 1.95)
_MARGIN = 0.5

# Of each shape, in units of the radius: area / radius^2 and how far below the centre
# of its bounding box the centroid lies.
SQUARE_HALF_SIDE = 0.9
CROSS_HALF_WIDTH = 0.36
AREAS = (
    math.pi,
    4 * SQUARE_HALF_SIDE**2,
    2.0,
    8 * CROSS_HALF_WIDTH - 4 * CROSS_HALF_WIDTH**2,
)
CENTROID_OFFSETS = (0.0, 0.0, 1 / 3, 0.0)


class Trajectory(NamedTuple):
    """Where a shape is in every frame, in pixels."""

    centre: Float[Array, "batch frames 2"]
    """x (to the right) and y (downwards) of the bounding box's centre."""
    radius: Float[Array, "batch frames"]
    """Half of the bounding box's side."""


def coverage(
    shape: int, centre: Float[Array, "... 2"], radius: Float[Array, "..."]
) -> Float[Array, "... 32 32"]:
    """Fraction of every pixel that a shape covers, from its signed distance.

    Args:
        shape: index into `vocabulary.SHAPES`.
        centre: x and y of the shape's centre, pixels.
        radius: half of its bounding box's side, pixels.

    Returns:
        Coverage in [0, 1], float32, row (y) first.
    """
    grid = jnp.arange(SIZE, dtype=jnp.float32) + 0.5
    x = jnp.abs(grid - centre[..., 0, None, None])
    y = grid[:, None] - centre[..., 1, None, None]
    r = radius[..., None, None]
    match vocabulary.SHAPES[shape]:
        case "circle":
            distance = jnp.sqrt(x**2 + y**2) - r
        case "square":
            distance = jnp.maximum(x, jnp.abs(y)) - SQUARE_HALF_SIDE * r
        case "triangle":
            distance = jnp.maximum(y - r, (2 * x - y - r) / math.sqrt(5))
        case "cross":
            width = CROSS_HALF_WIDTH * r
            across = jnp.maximum(x - r, jnp.abs(y) - width)
            distance = jnp.minimum(across, jnp.maximum(x - width, jnp.abs(y) - r))
        case other:
            raise ValueError(f"no outline is defined for the shape {other!r}")
    return jnp.clip(0.5 - distance, 0.0, 1.0)


def sample_trajectories(
    key: Key[Array, ""], motion: Int[Array, " batch"]
) -> Trajectory:
    """Draw position, size and speed; the shape stays inside the frame throughout.

    Args:
        key: random key.
        motion: indices into `vocabulary.MOTION_NAMES`.

    Returns:
        The shapes' trajectories.
    """
    batch = motion.shape[0]
    names = vocabulary.MOTION_NAMES
    k_radius, k_small, k_growth, k_travel, k_place = jax.random.split(key, 5)

    def draw(
        key: Key[Array, ""], limits: tuple[float, float]
    ) -> Float[Array, " batch"]:
        return jax.random.uniform(key, (batch,), minval=limits[0], maxval=limits[1])

    directions = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    table = jnp.asarray([directions.get(name, (0, 0)) for name in names], jnp.float32)
    travel = table[motion] * draw(k_travel, _TRAVEL)[:, None]

    grows = motion == names.index("grows")
    shrinks = motion == names.index("shrinks")
    radius, small = draw(k_radius, _RADIUS), draw(k_small, _SMALL_RADIUS)
    large = small * draw(k_growth, _GROWTH)
    first = jnp.where(grows, small, jnp.where(shrinks, large, radius))
    last = jnp.where(grows, large, jnp.where(shrinks, small, radius))

    reach = jnp.maximum(first, last)[:, None] + _MARGIN + jnp.abs(travel) / 2
    place = jax.random.uniform(k_place, (batch, 2))
    middle = reach + place * (SIZE - 2 * reach)

    time = jnp.linspace(0.0, 1.0, FRAMES)
    centre = middle[:, None] + travel[:, None] * (time[:, None] - 0.5)
    return Trajectory(
        centre=centre, radius=first[:, None] + (last - first)[:, None] * time
    )


def render(
    attributes: Int[Array, "batch 4"], trajectory: Trajectory
) -> Float[Array, "batch 13 3 32 32"]:
    """Draw videos with anti-aliased edges.

    Args:
        attributes: int `[batch, 4]` as in `vocabulary.combinations`.
        trajectory: position and size per frame.

    Returns:
        float32 RGB in [-1, 1], `[batch, frames, 3, height, width]`.
    """
    shape, colour, background, _ = jnp.moveaxis(jnp.asarray(attributes), -1, 0)
    alpha = jnp.zeros((*trajectory.radius.shape, SIZE, SIZE), jnp.float32)
    for index in range(len(vocabulary.SHAPES)):
        drawn = coverage(index, trajectory.centre, trajectory.radius)
        alpha = jnp.where((shape == index)[:, None, None, None], drawn, alpha)
    colours = jnp.asarray(vocabulary.palette())
    front = colours[colour][:, None, :, None, None]
    back = colours[background][:, None, :, None, None]
    return back + alpha[:, :, None] * (front - back)


def make_videos(
    key: Key[Array, ""], attributes: Int[Array, "batch 4"]
) -> Float[Array, "batch 13 3 32 32"]:
    """Random videos with the given attributes, as `render` returns them."""
    motion = jnp.asarray(attributes)[:, 3]
    return render(attributes, sample_trajectories(key, motion))


def sample_attributes(
    key: Key[Array, ""], batch: int, *, held_out: bool = False
) -> Int[Array, "batch 4"]:
    """Draw attribute vectors uniformly from the training or the held-out combinations.

    Args:
        key: random key.
        batch: number of vectors.
        held_out: draw from the combinations that training never sees.

    Returns:
        int32 `[batch, 4]`.
    """
    rows = (
        vocabulary.held_out_combinations()
        if held_out
        else vocabulary.training_combinations()
    )
    return jnp.asarray(rows)[jax.random.randint(key, (batch,), 0, len(rows))]
