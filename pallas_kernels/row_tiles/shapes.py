"""Activations that real networks quantize, for tests and benchmarks."""

from __future__ import annotations

from pallas_kernels.shapes import ALL_LINEARS, TEXT_TOKENS, TOKENS, WIDTHS

_LARGE, _SMALL = WIDTHS["cogvideox-5b"], WIDTHS["cogvideox-2b"]
ROWS = TOKENS["cogvideox-5b"]
TEXT_ROWS = TEXT_TOKENS["cogvideox-5b"]
# Of CogVideoX 5b and 2b: K, and what stands in front.
SITES = (
    (_LARGE[0], "norm"),
    (_LARGE[0], "plain"),
    (_LARGE[1], "plain"),
    (_LARGE[1], "gelu"),
    (_SMALL[0], "norm"),
    (_SMALL[0], "plain"),
    (_SMALL[1], "plain"),
)
# Those in which each kind of front end is compiled.
COMPILED = (SITES[0], SITES[4], SITES[3], SITES[6])
# Every K of every network.
CHANNELS = tuple(sorted({linear.k for linear in ALL_LINEARS}))
