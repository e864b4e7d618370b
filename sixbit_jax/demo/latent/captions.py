"""Free English for what a video of the small world shows: a grammar, and its words.

Every attribute has several words or phrases, sentences come in several orders, and what
is ordinary (a camera that stands still) may be left unsaid.
"""

import functools
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from sixbit_jax.demo.latent import world

SHAPES = {
    "ball": ("ball", "sphere", "orb"),
    "cube": ("cube", "box", "block"),
    "pyramid": ("pyramid", "cone"),
    "ring": ("ring", "donut", "hoop"),
}
COLOURS = {
    "red": ("red", "crimson", "scarlet"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "cyan": ("cyan", "turquoise", "teal"),
    "blue": ("blue", "navy"),
    "magenta": ("magenta", "pink", "purple"),
}
MOTIONS = {
    "left": (
        "moves left",
        "slides to the left",
        "drifts leftward",
        "glides to the left",
        "travels left",
    ),
    "right": (
        "moves right",
        "slides to the right",
        "drifts rightward",
        "glides to the right",
        "travels right",
    ),
    "up": ("moves up", "rises", "floats upward", "goes up", "climbs"),
    "down": ("moves down", "falls", "sinks", "goes down", "drops slowly"),
    "grows": ("grows", "gets bigger", "swells", "expands", "becomes larger"),
}
_STILL = ("stands still", "stays in place", "rests", "does not move", "waits")
TEXTURES = {
    "checkered": ("checkered", "chequered", "chessboard"),
    "striped": ("striped", "banded"),
    "dotted": ("dotted", "spotted"),
}
TONES = {
    "dark": ("dark", "dim", "black", "gloomy"),
    "light": ("light", "bright", "pale", "white"),
}
_WALLS = ("wall", "background", "backdrop")
CAMERAS = {
    "still": (
        "",
        "the camera stays still",
        "the camera does not move",
        "static camera",
    ),
    "pans left": (
        "the camera pans left",
        "the camera moves to the left",
        "the view shifts to the left",
    ),
    "pans right": (
        "the camera pans right",
        "the camera moves to the right",
        "the view shifts to the right",
    ),
    "zooms in": (
        "the camera zooms in",
        "the camera moves closer",
        "the view slowly zooms in",
    ),
}
_SIZES = ("", "", "shiny", "small", "plastic")
# a: the moving object, m: its motion, b: the other object, s: that it stands, w: the
# wall. The camera comes at the end or the beginning.
_SENTENCES = (
    "{a} {m} while {b} {s} in front of {w}",
    "{a} {m} and {b} {s}, {w} behind them",
    "in front of {w}, {a} {m} and {b} {s}",
    "{b} {s} and {a} {m} in front of {w}",
    "a video of {a} that {m} next to {b}, on {w}",
    "while {b} {s}, {a} {m} across {w}",
    "{a} {m} past {b}, on {w}",
    "on {w}, {b} {s} while {a} {m}",
)


def caption(row: Sequence[int] | np.ndarray, generator: np.random.Generator) -> str:
    """One of the many captions of an attribute vector.

    Args:
      row: eight integers, as in `world.Attributes`.
      generator: chooses the words.

    Returns:
      Lower case, with commas, without a full stop.
    """
    values = [int(value) for value in row]
    names = [
        known[value] for known, value in zip(world.NAMES.values(), values, strict=True)
    ]
    shape, colour, motion, other_shape, other_colour, texture, tone, camera = names

    def one(choices: Sequence[str]) -> str:
        return choices[int(generator.integers(len(choices)))]

    def thing(colour: str, shape: str) -> str:
        return _with_article(
            f"{one(_SIZES)} {one(COLOURS[colour])} {one(SHAPES[shape])}"
        )

    wall = _with_article(f"{one(TONES[tone])} {one(TEXTURES[texture])} {one(_WALLS)}")
    sentence = one(_SENTENCES).format(
        a=thing(colour, shape),
        m=one(MOTIONS[motion]),
        b=thing(other_colour, other_shape),
        s=one(_STILL),
        w=wall,
    )
    view = one(CAMERAS[camera])
    if not view:
        return sentence
    if generator.random() < 0.3:
        return f"{view}, {sentence}"
    return f"{sentence}, {view}"


def _with_article(words: str) -> str:
    words = " ".join(words.split())
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def captions(rows: Int[np.ndarray, "captions 8"], *, seed: int) -> list[str]:
    """One caption per attribute vector, always the same ones for a seed."""
    generator = np.random.default_rng(seed)
    return [caption(row, generator) for row in rows]


@functools.cache
def words() -> tuple[str, ...]:
    """Every word that captions use, sorted."""
    phrases = [*_STILL, *_WALLS, *_SIZES]
    for table in (SHAPES, COLOURS, MOTIONS, TEXTURES, TONES, CAMERAS):
        phrases += [phrase for choices in table.values() for phrase in choices]
    phrases += [re.sub(r"{\w}", "", sentence) for sentence in _SENTENCES]
    found = {word for phrase in phrases for word in split_words(phrase)}
    return tuple(sorted(found | {"a", "an"}))


def split_words(text: str) -> list[str]:
    """The words of a text in lower case, without marks around them."""
    return [
        word for part in text.lower().split() if (word := part.strip(".,;:!?\"'()"))
    ]


def unknown_words(text: str) -> list[str]:
    """The words of a prompt that no caption has, each once, in order."""
    known = set(words())
    return list(dict.fromkeys(w for w in split_words(text) if w not in known))
