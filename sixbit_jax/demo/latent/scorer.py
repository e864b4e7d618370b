"""Reads what a video of the small world shows back from its pixels, without learning.

Objects have hues and the wall has almost none: pixels of strong colour vote for the hue
they are close to, and the two that win are the objects. Each one's mask gives its path,
its size and, by overlap with the outlines, its shape. The wall's optical flow gives the
camera, the rest of the wall tone and texture. The object that moves is the one whose
path the camera does not explain.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sixbit_jax.demo.latent import render, world

_CHROMA = 0.24
# Fraction of pixels of its colour that an object covers at least.
_LEAST = 0.006
_OVERLAP = 0.6
# Typical travel in pixels and log growth; less than `_STILL` of either is none.
_TYPICAL_TRAVEL, _TYPICAL_GROWTH, _STILL = 49.0, 0.61, 0.35


class Reading(NamedTuple):
    """What videos show: the fields of `world.Attributes`, -1 where not readable."""

    rows: Int[Array, "batch 8"]
    overlap: Float[Array, "batch 2"]
    """Of each object's mask with the best outline, mean over frames."""


def read(videos: Float[np.ndarray | Array, "batch F 3 H W"]) -> Reading:
    """Reads the attributes of videos.

    Args:
      videos: RGB, nominally in [-1, 1]; clipped.

    Raises:
      ValueError: not [batch, frames >= 2, 3, 128, 128].
    """
    shape = tuple(videos.shape)
    if len(shape) != 5 or shape[1] < 2 or shape[2:] != (3, world.SIZE, world.SIZE):
        raise ValueError(
            "expected videos of shape (batch, frames >= 2, 3, "
            f"{world.SIZE}, {world.SIZE}), got {shape}"
        )
    return _read(jnp.asarray(videos, jnp.float32))


@jax.jit
def _read(videos: Float[Array, "batch F 3 H W"]) -> Reading:
    return jax.lax.map(_read_one, jnp.clip(jnp.nan_to_num(videos), -1.0, 1.0))


def _hues(pixels: Float[Array, "... 3"]) -> tuple[Array, Array]:
    """Hue as an angle and chroma of RGB in [0, 1]."""
    red, green, blue = jnp.moveaxis(pixels, -1, 0)
    a = red - 0.5 * (green + blue)
    b = (green - blue) * (3**0.5 / 2)
    return jnp.arctan2(b, a), jnp.hypot(a, b)


def _read_one(video: Float[Array, "F 3 H W"]) -> Reading:
    pixels = jnp.moveaxis(video, 1, -1) * 0.5 + 0.5
    hue, chroma = _hues(pixels)
    known, _ = _hues(jnp.asarray(list(world.COLOURS.values()), jnp.float32))
    away = jnp.abs(jnp.angle(jnp.exp(1j * (hue[..., None] - known))))
    nearest = jnp.where(chroma > _CHROMA, away.argmin(-1), -1)
    votes = (nearest[..., None] == jnp.arange(len(known))).mean((0, 1, 2))
    first = votes.argmax()
    second = votes.at[first].set(0.0).argmax()
    colours = jnp.stack([first, second])
    masks = nearest[..., None] == colours
    masks = jnp.moveaxis(masks, -1, 0).astype(jnp.float32)
    seen = votes[colours] > _LEAST

    grid = jnp.arange(world.SIZE, dtype=jnp.float32) + 0.5 - world.SIZE / 2
    area = jnp.maximum(masks.sum((2, 3)), 1e-3)
    x = (masks * grid).sum((2, 3)) / area
    y = (masks * grid[:, None]).sum((2, 3)) / area
    shapes, overlap = _shapes(masks, x, y, area, grid)
    pan, zoom = _camera(pixels, chroma, grid)
    camera = _camera_name(pan, zoom)
    mover, motion = _motion(x, y, jnp.log(area) / 2, pan, zoom)
    texture, tone = _texture(pixels, chroma)

    order = jnp.stack([mover, 1 - mover])
    shape = jnp.where(seen & (overlap > _OVERLAP), shapes, -1)[order]
    colour = jnp.where(seen, colours, -1)[order]
    fields = (shape[0], colour[0], jnp.where(seen.all(), motion, -1))
    fields += (shape[1], colour[1], texture, tone, camera)
    return Reading(jnp.stack([jnp.asarray(f, jnp.int32) for f in fields]), overlap)


def _shapes(
    masks: Float[Array, "2 F H W"], x: Array, y: Array, area: Array, grid: Array
) -> tuple[Int[Array, "2"], Float[Array, "2"]]:
    """The outline with the best mean overlap of each object, and that overlap."""
    found = []
    for kind in range(len(world.SHAPES)):
        radius = jnp.sqrt(area / render.AREAS[kind])[..., None, None]
        u = (grid - x[..., None, None]) / radius
        down = y[..., None, None] - render.CENTROID_OFFSETS[kind] * radius
        v = (grid[:, None] - down) / radius
        inside = jnp.clip(0.5 - render.distance(kind, u, v) * radius, 0.0, 1.0)
        both = jnp.minimum(masks, inside).sum((2, 3))
        either = jnp.maximum(masks, inside).sum((2, 3))
        found.append((both / jnp.maximum(either, 1e-3)).mean(1))
    overlaps = jnp.stack(found, -1)
    return overlaps.argmax(-1), overlaps.max(-1)


def _camera(
    pixels: Float[Array, "F H W 3"], chroma: Float[Array, "F H W"], grid: Array
) -> tuple[Array, Array]:
    """Pan in pixels and log zoom of the whole video, from the wall's optical flow.

    Least squares over all pixels of wall (Lucas and Kanade): the difference between two
    frames is minus the gradient times `-pan + zoom * place`.
    """
    grey = pixels.mean(-1)
    grey = _smooth(_smooth(grey))
    wall = 1.0 - _grown(chroma > 0.12)
    weight = wall[1:] * wall[:-1]
    middle = 0.5 * (grey[1:] + grey[:-1])
    gy = 0.5 * (jnp.roll(middle, -1, 1) - jnp.roll(middle, 1, 1))
    gx = 0.5 * (jnp.roll(middle, -1, 2) - jnp.roll(middle, 1, 2))
    inner = (jnp.abs(grid) < world.SIZE / 2 - 4).astype(jnp.float32)
    weight = weight * inner * inner[:, None]
    change = grey[1:] - grey[:-1]
    # Picture moves by (tx + s x, s y): change = -(gx tx + s (gx x + gy y)).
    radial = gx * grid + gy * grid[:, None]
    a = (weight * gx * gx).sum((1, 2)) + 1e-6
    b = (weight * gx * radial).sum((1, 2))
    c = (weight * radial * radial).sum((1, 2)) + 1e-4
    p = -(weight * gx * change).sum((1, 2))
    q = -(weight * radial * change).sum((1, 2))
    determinant = jnp.maximum(a * c - b * b, 1e-9)
    shift = (c * p - b * q) / determinant
    scale = (a * q - b * p) / determinant
    return -shift.sum(), scale.sum()


def _smooth(x: Array) -> Array:
    for axis in (-1, -2):
        x = 0.25 * jnp.roll(x, 1, axis) + 0.5 * x + 0.25 * jnp.roll(x, -1, axis)
    return x


def _grown(mask: Array) -> Array:
    """A mask, wider by some pixels (shadows and soft edges)."""
    return _window(mask.astype(jnp.float32), 13, -jnp.inf, jax.lax.max)


def _window(x: Float[Array, "F H W"], size: int, start: float, over: Any) -> Array:
    """A reduction over square windows, rows first."""
    for shape in ((1, size, 1), (1, 1, size)):
        x = jax.lax.reduce_window(x, start, over, shape, (1, 1, 1), "SAME")
    return x


def _camera_name(pan: Array, zoom: Array) -> Int[Array, ""]:
    expected = np.log(render.ZOOM[1] / render.ZOOM[0])
    trends = jnp.stack(
        [
            jnp.float32(0.4),
            -pan / render.PAN,
            pan / render.PAN,
            zoom / expected,
        ]
    )
    return trends.argmax()


def _motion(
    x: Float[Array, "2 F"],
    y: Float[Array, "2 F"],
    size: Float[Array, "2 F"],
    pan: Array,
    zoom: Array,
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Which object moves on its own, and how; -1 where none does."""
    frames = x.shape[1]
    time = jnp.linspace(0.0, 1.0, frames)
    # What the camera does to something at rest, undone.
    scale = jnp.exp(zoom * time)
    place_x = x / scale + pan * time
    place_y = y / scale
    size = size - zoom * time
    centred = time - time.mean()
    slope = centred / (centred @ centred)
    dx, dy, growth = place_x @ slope, place_y @ slope, size @ slope
    dx, dy = dx / _TYPICAL_TRAVEL, dy / _TYPICAL_TRAVEL
    growth = growth / _TYPICAL_GROWTH
    trends = jnp.stack([-dx, dx, -dy, dy, growth], -1)
    strongest = trends.max(-1)
    mover = strongest.argmax()
    motion = jnp.where(strongest[mover] > _STILL, trends[mover].argmax(), -1)
    return mover, motion


def _texture(
    pixels: Float[Array, "F H W 3"], chroma: Float[Array, "F H W"]
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Texture and tone of the wall.

    Stripes change along one diagonal only: gradients have one direction. Dots cover a
    quarter of the wall, checks half of it.
    """
    grey = pixels.mean(-1)
    wall = 1.0 - _grown(chroma > 0.12)
    total = jnp.maximum(wall.sum(), 1.0)
    level = (wall * grey).sum() / total
    tone = (level > 0.5).astype(jnp.int32)
    smooth = _smooth(grey)
    gy = 0.5 * (jnp.roll(smooth, -1, 1) - jnp.roll(smooth, 1, 1))
    gx = 0.5 * (jnp.roll(smooth, -1, 2) - jnp.roll(smooth, 1, 2))
    inner = jnp.zeros_like(grey).at[:, 4:-4, 4:-4].set(1.0) * wall
    xx, yy = (inner * gx * gx).sum(), (inner * gy * gy).sum()
    xy = (inner * gx * gy).sum()
    coherence = jnp.hypot(xx - yy, 2 * xy) / jnp.maximum(xx + yy, 1e-6)
    # Light from above: compare with the mean of a wide neighbourhood.
    sums = [_window(part, 49, 0.0, jax.lax.add) for part in (wall * grey, wall)]
    local = sums[0] / jnp.maximum(sums[1], 1.0)
    deviation = (grey - local) * wall
    square = (deviation**2).sum() / total
    skew = (deviation**3).sum() / total / jnp.maximum(square, 1e-8) ** 1.5
    plain = square < 2e-4
    texture = jnp.where(coherence > 0.5, 1, jnp.where(skew > 0.4, 2, 0))
    return jnp.where(plain, -1, texture), tone


def score(
    videos: Float[np.ndarray | Array, "batch F 3 H W"], rows: Int[np.ndarray, "batch 8"]
) -> dict[str, float]:
    """Fractions of videos that show what their attribute vectors say.

    Args:
      videos: RGB in [-1, 1].
      rows: attribute vectors.

    Returns:
      By attribute, over all of them (`attribute_score`), and of videos with all right.

    Raises:
      ValueError: counts or shapes do not fit.
    """
    if len(rows) != len(videos):
        raise ValueError(f"got {len(videos)} videos and {len(rows)} attribute vectors")
    right = np.asarray(read(videos).rows) == np.asarray(rows)
    result = {name: float(right[:, i].mean()) for i, name in enumerate(world.NAMES)}
    result["attribute_score"] = float(right.mean())
    result["all_right"] = float(right.all(-1).mean())
    return result
