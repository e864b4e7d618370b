"""Reads shape, colour, background and motion back from a video, without learning.

Every pixel votes for the palette colour that it is close to: the winner is the
background, the runner-up the shape's colour. Projecting pixels on the line between the
two gives a mask per frame; its centroid and area over time give the motion, and the
outline that best overlaps it (size and centre follow from area and centroid) gives the
shape.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sixbit_jax.demo import data, vocabulary

# A frame shows a shape if its mask covers this range of pixels.
_AREA_RANGE = (10.0, 500.0)
_FRAMES_SHOWING = 0.75
_OVERLAP = 0.6
# Corners of the RGB cube are 2 apart; edge pixels lie between two of them.
_NEAR_COLOUR = 0.9
# Fractions of all pixels that a colour must win.
_BACKGROUND_VOTES = 0.4
_SHAPE_VOTES = 0.01
# Typical travel in pixels and log growth over a video; less than _STILL of either
# counts as no motion.
_TYPICAL_TRAVEL = 10.0
_TYPICAL_GROWTH = 0.67
_STILL = 0.3


class Reading(NamedTuple):
    """What a video shows; -1 where nothing could be read."""

    shape: Int[Array, " batch"]
    colour: Int[Array, " batch"]
    background: Int[Array, " batch"]
    motion: Int[Array, " batch"]
    overlap: Float[Array, " batch"]
    """Intersection over union of mask and best outline, mean over frames."""

    @property
    def attributes(self) -> Int[Array, "batch 4"]:
        """The four attributes as one array, in the order of `vocabulary.ATTRIBUTES`."""
        return jnp.stack([self.shape, self.colour, self.background, self.motion], -1)


class Scores(NamedTuple):
    """Whether each attribute of each video is the one its caption names."""

    shape: Bool[np.ndarray, " batch"]
    colour: Bool[np.ndarray, " batch"]
    background: Bool[np.ndarray, " batch"]
    motion: Bool[np.ndarray, " batch"]

    @property
    def correct(self) -> Bool[np.ndarray, "batch 4"]:
        """All attributes as one array, in the order of `vocabulary.ATTRIBUTES`."""
        return np.stack(tuple(self), axis=-1)

    @property
    def attribute_score(self) -> float:
        """Fraction of all attributes that are right."""
        return float(self.correct.mean())

    def summary(self) -> dict[str, float]:
        """Fraction right per attribute, over all, and of videos with all four right."""
        result = {name: float(value.mean()) for name, value in self._asdict().items()}
        result["attribute_score"] = self.attribute_score
        result["all_right"] = float(self.correct.all(axis=-1).mean())
        return result


def score(
    videos: Float[np.ndarray | Array, "batch frames 3 32 32"], captions: Sequence[str]
) -> Scores:
    """Compare what videos show with what their captions say.

    Args:
        videos: RGB, nominally in [-1, 1]; values beyond are clipped.
        captions: one caption per video, as `vocabulary.caption_of` writes them.

    Returns:
        Per attribute, bool `[batch]`.

    Raises:
        ValueError: shapes or counts do not fit, or a caption cannot be parsed.
    """
    if len(captions) != len(videos):
        raise ValueError(f"got {len(videos)} videos and {len(captions)} captions")
    expected = vocabulary.parse_captions(captions)
    found = np.asarray(read(videos).attributes)
    return Scores(*np.moveaxis(found == expected, -1, 0))


def read(videos: Float[np.ndarray | Array, "batch frames 3 32 32"]) -> Reading:
    """Read the attributes that videos show.

    Args:
        videos: RGB, nominally in [-1, 1]; values beyond are clipped, NaN reads as 0.

    Returns:
        One entry per video; -1 where an attribute could not be read.

    Raises:
        ValueError: the array is not `[batch, frames >= 2, 3, 32, 32]`.
    """
    shape = tuple(videos.shape)
    if len(shape) != 5 or shape[2:] != (3, data.SIZE, data.SIZE) or shape[1] < 2:
        raise ValueError(
            "expected videos of shape (batch, frames >= 2, 3, "
            f"{data.SIZE}, {data.SIZE}), got {shape}"
        )
    return _read(jnp.asarray(videos, jnp.float32))


@jax.jit
def _read(videos: Float[Array, "batch frames 3 32 32"]) -> Reading:
    return jax.vmap(_read_one)(jnp.clip(jnp.nan_to_num(videos), -1.0, 1.0))


def _read_one(video: Float[Array, "frames 3 32 32"]) -> Reading:
    palette = jnp.asarray(vocabulary.palette())
    pixels = jnp.moveaxis(video, 1, -1)
    distance = jnp.linalg.norm(pixels[..., None, :] - palette, axis=-1)
    near = jnp.where(distance.min(-1) < _NEAR_COLOUR, distance.argmin(-1), -1)
    votes = (near[..., None] == jnp.arange(len(palette))).mean((0, 1, 2))
    background = votes.argmax()
    others = votes.at[background].set(0.0)
    colour = others.argmax()

    mask = _mask(pixels, palette[background], palette[colour])
    area = mask.sum((1, 2))
    showing = (area >= _AREA_RANGE[0]) & (area <= _AREA_RANGE[1])
    visible = showing.mean() >= _FRAMES_SHOWING
    safe_area = jnp.maximum(area, 1e-3)
    grid = jnp.arange(data.SIZE, dtype=jnp.float32) + 0.5
    centroid = jnp.stack(
        [(mask * grid).sum((1, 2)), (mask * grid[:, None]).sum((1, 2))], axis=-1
    )
    centroid = centroid / safe_area[:, None]

    motion = _motion(centroid, jnp.log(safe_area) / 2, showing)
    shape, overlap = _shape(mask, centroid, safe_area, showing)
    return Reading(
        shape=jnp.where(visible & (overlap >= _OVERLAP), shape, -1),
        colour=jnp.where(visible & (others[colour] >= _SHAPE_VOTES), colour, -1),
        background=jnp.where(votes[background] >= _BACKGROUND_VOTES, background, -1),
        motion=jnp.where(visible, motion, -1),
        overlap=overlap,
    )


def _mask(
    pixels: Float[Array, "frames 32 32 3"],
    back: Float[Array, "3"],
    front: Float[Array, "3"],
) -> Float[Array, "frames 32 32"]:
    """Coverage of the shape; the steeper slope removes noise and keeps the area."""
    line = front - back
    along = (pixels - back) @ line / jnp.maximum(line @ line, 1e-6)
    return jnp.clip(2 * along - 0.5, 0.0, 1.0)


def _motion(
    centroid: Float[Array, "frames 2"],
    log_size: Float[Array, " frames"],
    showing: Bool[Array, " frames"],
) -> Int[Array, ""]:
    """The strongest linear trend of position and size, or -1 if all are weak."""
    time = jnp.linspace(0.0, 1.0, log_size.shape[0])
    weight = showing / jnp.maximum(showing.sum(), 1)
    centred = time - weight @ time
    slope_of = weight * centred / jnp.maximum(weight @ centred**2, 1e-6)
    x, y = (slope_of @ centroid) / _TYPICAL_TRAVEL
    growth = (slope_of @ log_size) / _TYPICAL_GROWTH
    by_name = {"left": -x, "right": x, "up": -y, "down": y}
    by_name |= {"grows": growth, "shrinks": -growth}
    trends = jnp.stack([by_name[name] for name in vocabulary.MOTION_NAMES])
    return jnp.where(trends.max() >= _STILL, trends.argmax(), -1)


def _shape(
    mask: Float[Array, "frames 32 32"],
    centroid: Float[Array, "frames 2"],
    area: Float[Array, " frames"],
    showing: Bool[Array, " frames"],
) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """The outline with the best mean overlap, and that overlap."""
    overlaps = []
    for index, (unit_area, offset) in enumerate(
        zip(data.AREAS, data.CENTROID_OFFSETS, strict=True)
    ):
        radius = jnp.sqrt(area / unit_area)
        centre = centroid - jnp.stack([jnp.zeros_like(radius), offset * radius], -1)
        outline = data.coverage(index, centre, radius)
        both = jnp.minimum(mask, outline).sum((1, 2))
        either = jnp.maximum(mask, outline).sum((1, 2))
        frames = both / jnp.maximum(either, 1e-3)
        overlaps.append((frames * showing).sum() / jnp.maximum(showing.sum(), 1))
    overlaps = jnp.stack(overlaps)
    return overlaps.argmax(), overlaps.max()
