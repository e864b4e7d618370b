"""Rotary position embedding over a 3D token grid."""

from typing import NamedTuple

import numpy as np


class RotaryTable(NamedTuple):
    """Cosines and sines per video token, one per pair of channels.

    Attributes:
      cos: [tokens, head_dim / 2] float32.
      sin: [tokens, head_dim / 2] float32.
    """

    cos: np.ndarray
    sin: np.ndarray


def resize_crop_region(
    grid: tuple[int, int], base: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where a (height, width) grid lies in the base grid after resize and crop.

    Returns:
      ((top, left), (bottom, right)) in units of base tokens.
    """
    (height, width), (base_height, base_width) = grid, base
    if height / width > base_height / base_width:
        resized = base_height, round(base_height / height * width)
    else:
        resized = round(base_width / width * height), base_width
    top = round((base_height - resized[0]) / 2.0)
    left = round((base_width - resized[1]) / 2.0)
    return (top, left), (top + resized[0], left + resized[1])


def _frequencies(dim: int, positions: np.ndarray, theta: float) -> np.ndarray:
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    inverse = (1.0 / np.power(np.float32(theta), exponent)).astype(np.float32)
    return np.outer(positions.astype(np.float32), inverse).astype(np.float32)


def rotary_3d(
    head_dim: int,
    *,
    frames: int,
    height: int,
    width: int,
    base: tuple[int, int],
    grid: str,
    theta: float = 10_000.0,
) -> RotaryTable:
    """Rotary table of CogVideoX: head channels split 1/4, 3/8, 3/8 over t, h, w.

    Args:
      head_dim: channels of a head, divisible by 16.
      frames, height, width: size of the token grid.
      base: (height, width) of the grid that the model was trained with.
      grid: "resize_crop" (CogVideoX 1.0, positions stretched over the base grid) or
        "slice" (1.5, positions 0, 1, 2, ...).
      theta: base of the frequencies.

    Returns:
      A RotaryTable for `frames * height * width` tokens.

    Raises:
      ValueError: if `grid` has another value.
    """
    times = np.arange(frames, dtype=np.float32)
    if grid == "resize_crop":
        start, stop = resize_crop_region((height, width), base)
        rows, columns = (
            np.linspace(a, b * (n - 1) / n, n, dtype=np.float32)
            for a, b, n in zip(start, stop, (height, width), strict=True)
        )
    elif grid == "slice":
        rows = np.arange(height, dtype=np.float32)
        columns = np.arange(width, dtype=np.float32)
    else:
        raise ValueError(f"grid is 'resize_crop' or 'slice', found {grid!r}")
    dim_t, dim_s = head_dim // 4, head_dim // 8 * 3
    shape = (frames, height, width)
    parts = [
        _frequencies(dim_t, times, theta)[:, None, None, :],
        _frequencies(dim_s, rows, theta)[None, :, None, :],
        _frequencies(dim_s, columns, theta)[None, None, :, :],
    ]
    angles = np.concatenate(
        [np.broadcast_to(p, (*shape, p.shape[-1])) for p in parts], axis=-1
    ).reshape(-1, head_dim // 2)
    return RotaryTable(np.cos(angles), np.sin(angles))
