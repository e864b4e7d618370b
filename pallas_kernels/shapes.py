"""Sizes of real networks, shared by tests and benchmarks.

The shapes that an operation meets are in its own `shapes.py`, made of these.
"""

from __future__ import annotations

from typing import NamedTuple


class Linear(NamedTuple):
    """One linear layer of one network: `m` tokens, `k` in, `n` out."""

    model: str
    layer: str
    m: int
    k: int
    n: int


# Tokens of the default video: text tokens come on top of the patches in CogVideoX and
# HunyuanVideo. 17,776 and 45,106 are multiples of neither 64 nor 128.
TOKENS = {
    "cogvideox-2b": 17_776,
    "cogvideox-5b": 17_776,
    "cogvideox-1.5-5b": 45_106,
    "wan2.1-1.3b": 32_760,
    "wan2.1-14b": 32_760,
    "wan2.2-ti2v-5b": 27_280,
    "hunyuan-video": 119_056,
}
TEXT_TOKENS = {
    "cogvideox-2b": 226,
    "cogvideox-5b": 226,
    "cogvideox-1.5-5b": 226,
    "wan2.1-1.3b": 512,
    "wan2.1-14b": 512,
    "wan2.2-ti2v-5b": 512,
    "hunyuan-video": 256,
}
HEADS = {  # heads, channels of a head
    "cogvideox-2b": (30, 64),
    "cogvideox-5b": (48, 64),
    "cogvideox-1.5-5b": (48, 64),
    "wan2.1-1.3b": (12, 128),
    "wan2.1-14b": (40, 128),
    "wan2.2-ti2v-5b": (24, 128),
    "hunyuan-video": (24, 128),
}
# Text tokens in the residual stream; Wan has its text in cross-attention.
JOINT_TEXT_TOKENS = {
    model: 0 if model.startswith("wan") else count
    for model, count in TEXT_TOKENS.items()
}
WIDTHS = {  # residual width, feed-forward width
    "cogvideox-2b": (1920, 7680),
    "cogvideox-5b": (3072, 12288),
    "cogvideox-1.5-5b": (3072, 12288),
    "wan2.1-1.3b": (1536, 8960),
    "wan2.1-14b": (5120, 13824),
    "wan2.2-ti2v-5b": (3072, 14336),
    "hunyuan-video": (3072, 12288),
}


def block_linears(model: str) -> tuple[Linear, ...]:
    """The distinct linears of one block at the default video.

    q, k and v share an input, so that they run as one product of three times the width.
    """
    width, feed_forward = WIDTHS[model]
    m = TOKENS[model]
    return (
        Linear(model, "qkv", m, width, 3 * width),
        Linear(model, "attn_out", m, width, width),
        Linear(model, "ff_up", m, width, feed_forward),
        Linear(model, "ff_down", m, feed_forward, width),
    )


MODELS = tuple(TOKENS)
ALL_LINEARS = tuple(linear for model in MODELS for linear in block_linears(model))

# What the results report: CogVideoX 5b and 2b at 49 frames, 480x720.
HEADLINE = (*block_linears("cogvideox-5b"), *block_linears("cogvideox-2b"))
