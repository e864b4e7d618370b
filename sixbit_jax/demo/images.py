"""Videos as pictures: contact sheets, and a PNG writer that needs no image library."""

import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8


def to_uint8(
    videos: Float[np.ndarray, "*batch 3 H W"],
) -> UInt8[np.ndarray, "*batch H W 3"]:
    """RGB in [-1, 1], channels first, to bytes with channels last; clips."""
    clipped = np.clip(np.nan_to_num(np.asarray(videos, np.float32)), -1.0, 1.0)
    return np.moveaxis(np.round((clipped + 1) * 127.5), -3, -1).astype(np.uint8)


def contact_sheet(
    videos: Float[np.ndarray, "batch frames 3 H W"],
    *,
    every: int = 2,
    scale: int = 2,
    gap: int = 2,
) -> UInt8[np.ndarray, "rows columns 3"]:
    """One row per video, frames from left to right.

    Args:
        videos: RGB in [-1, 1].
        every: show every n-th frame.
        scale: pixels per video pixel.
        gap: grey pixels between frames.

    Returns:
        The picture, `[rows, columns, 3]`.
    """
    frames = to_uint8(videos)[:, ::every].repeat(scale, axis=2).repeat(scale, axis=3)
    padded = np.pad(
        frames, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=128
    )
    batch, count, height, width, _ = padded.shape
    sheet = padded.transpose(0, 2, 1, 3, 4).reshape(batch * height, count * width, 3)
    return np.pad(sheet, ((gap, 0), (gap, 0), (0, 0)), constant_values=128)


def write_png(path: Path, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write an RGB picture as PNG.

    Args:
        path: file to write.
        image: uint8 `[height, width, 3]`.

    Raises:
        ValueError: the array is not an RGB picture of bytes.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"expected uint8 [height, width, 3], got {image.dtype} {image.shape}"
        )
    height, width, _ = image.shape

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    # Every row starts with its filter type; 0 is none. 8 bits, colour type 2 is RGB.
    rows = np.pad(image.reshape(height, width * 3), ((0, 0), (1, 0))).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b""))
