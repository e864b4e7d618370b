"""Queries and keys of real networks before attention, for tests and benchmarks."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pallas_kernels import shapes


class Shape(NamedTuple):
    """Queries `[1, tokens, heads, head_dim]`, their norm, and if they are turned."""

    tokens: int
    text: int
    heads: int
    head_dim: int
    norm: Literal["layer", "rms"]
    rotary: bool


def _of(model: str, norm: Literal["layer", "rms"], rotary: bool = True) -> Shape:
    tokens, text = shapes.TOKENS[model], shapes.JOINT_TEXT_TOKENS[model]
    return Shape(tokens, text, *shapes.HEADS[model], norm, rotary)


# By the names of the results.
SHAPES = {
    "cogvideox-5b": _of("cogvideox-5b", "layer"),
    "cogvideox-2b": _of("cogvideox-2b", "layer", rotary=False),
    "wan-1.3b": _of("wan2.1-1.3b", "rms"),
    "wan-14b": _of("wan2.1-14b", "rms"),
}
