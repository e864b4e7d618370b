"""Shapes of the attention of real networks, for tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

from pallas_kernels import shapes


class Shape(NamedTuple):
    """One attention: `[batch, queries, heads, head_dim]` over so many keys."""

    batch: int
    queries: int
    keys: int
    heads: int
    head_dim: int


def self_attention(model: str) -> Shape:
    """Of one video at its default size, one guidance branch."""
    tokens = shapes.TOKENS[model]
    return Shape(1, tokens, tokens, *shapes.HEADS[model])


def cross_attention(model: str) -> Shape:
    """Video tokens over the prompt, in networks that have it."""
    return self_attention(model)._replace(keys=shapes.TEXT_TOKENS[model])


# By the names of the results.
SHAPES = {
    "cogvideox-5b": self_attention("cogvideox-5b"),
    "cogvideox-2b": self_attention("cogvideox-2b"),
    "wan-1.3b": self_attention("wan2.1-1.3b"),
    "wan-14b": self_attention("wan2.1-14b"),
    "wan-1.3b-cross": cross_attention("wan2.1-1.3b"),
}
# Those of which every kind of tile is compiled.
COMPILED = tuple(SHAPES[name] for name in ("cogvideox-5b", "cogvideox-2b", "wan-1.3b"))
# (model, tokens, heads, head_dim, text rows, tokens of a frame) of sparse attention.
SPARSE = (
    ("cogvideox-5b", *self_attention("cogvideox-5b")[2:], (0, 226), 1350),
    ("wan2.1-1.3b", *self_attention("wan2.1-1.3b")[2:], (0, 0), 1560),
)
