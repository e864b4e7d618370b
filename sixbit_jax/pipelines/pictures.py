"""Pictures that videos begin or end with: reading files that may be anything, sizes.

What a picture's header says is checked before its pixels are decoded, so that a small
file cannot ask for a lot of memory. Everything is made upright 8-bit RGB.
"""

import os
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps

from sixbit_jax.models.network import Description
from sixbit_jax.reading.regular_file import open_regular
from sixbit_jax.text_encoders.clip_pixels import on_white

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LARGEST_FILE = 256 * 2**20
SMALLEST_SIDE, LARGEST_SIDE = 16, 16_384
LARGEST_AREA = 2**26
# A strip of other proportions is not what any network saw.
LARGEST_RATIO = 8

Picture = str | os.PathLike | Image.Image
Fit = Literal["stretch", "crop"]

# CogVideoX1.5 I2V: shorter side of 768 pixels, longer one of up to 1360.
_SHORTER, _LONGEST = 768, 1360


class PictureError(ValueError):
    """A file that is not a picture to begin a video with."""


def read_picture(source: Picture) -> Image.Image:
    """A picture as 8-bit RGB, upright, what is transparent on white.

    Args:
      source: a PNG, JPEG or WebP file, or a picture of Pillow. 16 bits are rounded to
        8; the orientation in EXIF data is applied.

    Raises:
      PictureError: for what is no such picture, is truncated or animated, and for sizes
        out of all proportion.
    """
    if isinstance(source, Image.Image):
        _check_size("picture", source.size)
        return _upright_rgb(source)
    name = str(source)
    try:
        with open_regular(source) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > LARGEST_FILE:
                raise PictureError(
                    f"{name}: expected a picture of at most {LARGEST_FILE:,} bytes, "
                    f"found {size:,}"
                )
            return _decoded(name, stream)
    except PictureError:
        raise
    except FileNotFoundError as error:
        raise PictureError(f"{name}: expected a picture, found no file") from error
    except (OSError, ValueError) as error:
        raise PictureError(str(error)) from error


def _decoded(name: str, stream: Any) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns of large and of slightly damaged files; sizes are checked here,
        # and what it can decode is taken.
        warnings.simplefilter("ignore")
        try:
            picture = Image.open(stream, formats=FORMATS)
        except Image.UnidentifiedImageError as error:
            raise PictureError(
                f"{name}: expected a picture ({', '.join(FORMATS)}), found something "
                "else"
            ) from error
        except Image.DecompressionBombError as error:
            raise PictureError(f"{name}: {error}") from error
        except Exception as error:
            raise PictureError(f"{name}: damaged or truncated: {error}") from error
        with picture:
            _check_size(name, picture.size)
            # Pictures of some phones hold a second view, which is not a motion.
            frames = getattr(picture, "n_frames", 1)
            if frames > 1 and picture.format != "MPO":
                raise PictureError(
                    f"{name}: expected one picture, found an animation of {frames}"
                )
            try:
                picture.load()
                return _upright_rgb(picture)
            except Exception as error:
                raise PictureError(f"{name}: damaged or truncated: {error}") from error


def _check_size(name: str, size: tuple[int, int]) -> None:
    width, height = size
    if min(size) < SMALLEST_SIDE or max(size) > LARGEST_SIDE:
        raise PictureError(
            f"{name}: expected {SMALLEST_SIDE} to {LARGEST_SIDE} pixels a side, found "
            f"{width}x{height}"
        )
    if width * height > LARGEST_AREA:
        raise PictureError(
            f"{name}: expected at most {LARGEST_AREA:,} pixels, found "
            f"{width * height:,} ({width}x{height})"
        )
    if max(size) > LARGEST_RATIO * min(size):
        raise PictureError(
            f"{name}: expected sides of at most {LARGEST_RATIO}:1, found "
            f"{width}x{height}"
        )


def _upright_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        # Grey of 16 bits, which Pillow would cut off at 255.
        grey = np.asarray(ImageOps.exif_transpose(picture), np.float64)
        values = np.round(np.clip(grey, 0, 65535) / 257).astype(np.uint8)
        return Image.fromarray(values).convert("RGB")
    return on_white(ImageOps.exif_transpose(picture))


def picture_pixels(
    picture: Image.Image, *, height: int, width: int, fit: Fit = "stretch"
) -> Float[np.ndarray, "3 H W"]:
    """A picture as the autoencoders take it: float32 in [-1, 1], channels first.

    The arithmetic is that of diffusers' `VideoProcessor`: Pillow's Lanczos filter.

    Args:
      picture: RGB, of `read_picture`.
      height, width: those of the video.
      fit: "stretch" as the published pipelines do, or "crop": fill the frame and cut
        what stands out on both sides.
    """
    if fit == "crop":
        picture = _covering(picture, height, width)
    resized = picture.resize((width, height), resample=Image.Resampling.LANCZOS)
    unit = np.asarray(resized).astype(np.float32) / 255.0
    return np.ascontiguousarray((2.0 * unit - 1.0).transpose(2, 0, 1))


def _covering(picture: Image.Image, height: int, width: int) -> Image.Image:
    """The largest part in the middle with the proportions of the frame."""
    across, down = picture.size
    if across * height > down * width:
        other = max(1, round(down * width / height))
        left = (across - other) // 2
        return picture.crop((left, 0, left + other, down))
    other = max(1, round(across * height / width))
    top = (down - other) // 2
    return picture.crop((0, top, across, top + other))


def size_of_video(
    description: Description,
    picture: Image.Image,
    *,
    multiple: int,
    area: int | None = None,
) -> tuple[int, int]:
    """(height, width) that the published pipelines choose for a picture.

    Args:
      description: of the network. Wan keeps the proportions of the picture and the
        area it was trained on; CogVideoX1.5 a shorter side of 768 pixels; the first
        CogVideoX has one size.
      picture: that the video begins with.
      multiple: both sides must be multiples of so many pixels.
      area: in pixels; None is that of the published size.
    """
    default = description.defaults
    across, down = picture.size
    if area is None and description.conditions.prompt.stream is not None:
        if description.frame_patch == 1:
            return default.height, default.width
        shorter = min(_SHORTER, default.height, default.width)
        longest = shorter * _LONGEST // _SHORTER
        longer = min(shorter * max(across, down) / min(across, down), longest)
        sides = [shorter // multiple, int(longer) // multiple]
        height, width = sides if down <= across else reversed(sides)
    else:
        area = default.height * default.width if area is None else area
        height = round(float(np.sqrt(area * down / across))) // multiple
        width = round(float(np.sqrt(area / (down / across)))) // multiple
    return max(height, 1) * multiple, max(width, 1) * multiple


def pictures_of(place: Path) -> list[Path]:
    """The pictures of a folder by name, or those that a text file names, one a line.

    Raises:
      PictureError: if it is neither, or there are none.
    """
    if place.is_dir():
        found = sorted(f for f in place.iterdir() if f.suffix.lower() in SUFFIXES)
    elif place.suffix.lower() in SUFFIXES:
        found = [place]
    else:
        try:
            with open_regular(place) as stream:
                lines = stream.read(2**20).decode("utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise PictureError(f"{place}: expected a folder or a list: {error}") from (
                error
            )
        found = [place.parent / line.strip() for line in lines if line.strip()]
    if not found:
        raise PictureError(f"{place}: expected pictures, found none")
    return found


__all__ = [
    "Fit",
    "Picture",
    "PictureError",
    "picture_pixels",
    "pictures_of",
    "read_picture",
    "size_of_video",
]
