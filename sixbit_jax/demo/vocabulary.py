"""The words of the demo world: attributes of a video, captions, held-out combinations.

A video is described by four attributes, kept as an integer vector
`(shape, colour, background, motion)`. Colours and backgrounds are indices into
`PALETTE`, whose entries are corners of the RGB cube: an over-saturated sample that is
clipped to [-1, 1] keeps its colour.
"""

import functools
import hashlib
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

PALETTE: dict[str, tuple[int, int, int]] = {
    "black": (-1, -1, -1),
    "white": (1, 1, 1),
    "red": (1, -1, -1),
    "green": (-1, 1, -1),
    "blue": (-1, -1, 1),
    "yellow": (1, 1, -1),
    "cyan": (-1, 1, 1),
    "magenta": (1, -1, 1),
}
COLOUR_NAMES = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle", "cross")
SHAPE_COLOURS = ("red", "green", "blue", "yellow", "cyan", "magenta")
BACKGROUNDS = ("black", "white", "green", "blue", "yellow")
MOTIONS: dict[str, str] = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "grows": "grows",
    "shrinks": "shrinks",
}
MOTION_NAMES = tuple(MOTIONS)
ATTRIBUTES = ("shape", "colour", "background", "motion")
MAX_WORDS = 16
# One combination in this many is kept from training.
HELD_OUT_EVERY = 10


def palette() -> np.ndarray:
    """RGB of every colour name, float32 `[colours, 3]` in [-1, 1]."""
    return np.asarray(list(PALETTE.values()), np.float32)


def caption_of(attributes: Sequence[int] | np.ndarray) -> str:
    """The caption of one attribute vector `(shape, colour, background, motion)`.

    Raises:
        ValueError: the vector has not four entries, or one is out of range.
    """
    values = [int(value) for value in attributes]
    sizes = (len(SHAPES), len(COLOUR_NAMES), len(COLOUR_NAMES), len(MOTION_NAMES))
    if len(values) != 4 or any(
        not 0 <= value < size for value, size in zip(values, sizes, strict=True)
    ):
        raise ValueError(
            f"expected four attributes {ATTRIBUTES} in the ranges {sizes}, got {values}"
        )
    shape, colour, background, motion = values
    return (
        f"a {COLOUR_NAMES[colour]} {SHAPES[shape]} {MOTIONS[MOTION_NAMES[motion]]} "
        f"on a {COLOUR_NAMES[background]} background"
    )


@functools.cache
def _attributes_by_caption() -> dict[str, tuple[int, int, int, int]]:
    return {caption_of(row): tuple(row) for row in combinations().tolist()}


def parse_captions(captions: Sequence[str]) -> Int[np.ndarray, "captions 4"]:
    """Read the attributes out of captions.

    Args:
        captions: captions in the form that `caption_of` writes; case, repeated blanks
            and a closing full stop do not matter.

    Returns:
        Attribute vectors, int32 `[captions, 4]`.

    Raises:
        ValueError: captions that are not of this form, all listed.
    """
    known = _attributes_by_caption()
    keys = [" ".join(words(caption)) for caption in captions]
    unknown = [
        caption for caption, key in zip(captions, keys, strict=True) if key not in known
    ]
    if unknown:
        raise ValueError(
            f"{len(unknown)} captions are not of the form {caption_of((0, 2, 4, 0))!r} "
            f"(shapes {SHAPES}, colours {SHAPE_COLOURS}, motions "
            f"{tuple(MOTIONS.values())}, backgrounds {BACKGROUNDS} other than the "
            f"shape's colour): {unknown}"
        )
    return np.asarray([known[key] for key in keys], np.int32).reshape(-1, 4)


def words(caption: str) -> list[str]:
    """Split a caption into lower-case words, without commas and a closing full stop."""
    return caption.lower().replace(",", " ").replace(".", " ").split()


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Every word that captions use, sorted."""
    found = {word for caption in _attributes_by_caption() for word in words(caption)}
    return tuple(sorted(found))


@functools.cache
def combinations() -> Int[np.ndarray, "combinations 4"]:
    """Every attribute vector whose shape colour differs from its background."""
    rows = [
        (shape, COLOUR_NAMES.index(colour), COLOUR_NAMES.index(background), motion)
        for shape, colour, background, motion in itertools.product(
            range(len(SHAPES)), SHAPE_COLOURS, BACKGROUNDS, range(len(MOTION_NAMES))
        )
        if colour != background
    ]
    return _read_only(np.asarray(rows, np.int32))


@functools.cache
def _held_out_flags() -> Bool[np.ndarray, " combinations"]:
    # A hash of the caption: the choice survives a reordering of the word lists.
    digests = [
        hashlib.sha256(caption_of(row).encode()).digest() for row in combinations()
    ]
    flags = [int.from_bytes(d[:8], "big") % HELD_OUT_EVERY == 0 for d in digests]
    return _read_only(np.asarray(flags))


def held_out_combinations() -> Int[np.ndarray, "combinations 4"]:
    """The attribute vectors that training never sees, about one in ten."""
    return combinations()[_held_out_flags()]


def training_combinations() -> Int[np.ndarray, "combinations 4"]:
    """The attribute vectors that training draws from."""
    return combinations()[~_held_out_flags()]


def is_held_out(attributes: Int[np.ndarray, "n 4"]) -> Bool[np.ndarray, " n"]:
    """Whether each attribute vector is kept from training."""
    held = {tuple(row) for row in held_out_combinations().tolist()}
    return np.asarray([tuple(row) in held for row in np.asarray(attributes).tolist()])


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
