"""Residual streams of real networks, for tests and benchmarks."""

from __future__ import annotations

from pallas_kernels.shapes import TOKENS, WIDTHS

ROWS = TOKENS["cogvideox-5b"]
CHANNELS = (WIDTHS["cogvideox-5b"][0], WIDTHS["cogvideox-2b"][0])
