"""Videos as files: GIF, MP4 (extra `video`), and a contact sheet of frames."""

import importlib.util
import subprocess
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from sixbit_jax.files import replaced_file

Frames = UInt8[np.ndarray, "frames height width 3"]

_PAPER = (255, 255, 255)
_INK = (32, 32, 32)
_GREY = (110, 110, 110)
_EDGE = (190, 190, 190)


def to_pixels(
    latents: Float[Array | np.ndarray, "*batch frames 3 height width"],
) -> UInt8[np.ndarray, "*batch frames height width 3"]:
    """RGB bytes of a model whose latents are pixels in [-1, 1] (the bundled one).

    Raises:
      ValueError: if there are not three channels.
    """
    values = np.asarray(latents, np.float32)
    if values.ndim < 4 or values.shape[-3] != 3:
        raise ValueError(
            "pixels: expected latents [..., frames, 3, height, width], found "
            f"{values.shape}"
        )
    values = np.moveaxis(np.nan_to_num(values), -3, -1)
    return np.rint((np.clip(values, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def upscale(frames: Frames, factor: int) -> Frames:
    """Every pixel repeated `factor` times in both directions."""
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def write_gif(path: Path, frames: Frames, *, fps: int = 8, scale: int = 8) -> None:
    """Writes an endless GIF; one palette for all frames, so that colours stand still.

    Args:
      path: the file.
      frames: RGB bytes.
      fps: frames per second.
      scale: nearest-neighbour magnification.
    """
    pages = [Image.fromarray(frame) for frame in upscale(frames, scale)]
    strip = Image.fromarray(np.concatenate(list(frames)))
    palette = strip.quantize(256, method=Image.Quantize.MEDIANCUT)
    pages = [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]
    with replaced_file(path) as partial:
        pages[0].save(
            partial,
            save_all=True,
            append_images=pages[1:],
            duration=round(1000 / fps),
            loop=0,
        )


def mp4_available() -> bool:
    """Whether the extra `video` is installed."""
    return importlib.util.find_spec("imageio_ffmpeg") is not None


def write_mp4(
    path: Path,
    frames: Frames,
    *,
    fps: int = 8,
    scale: int = 8,
    crf: int = 16,
    comment: str | None = None,
) -> bool:
    """Writes H.264, where the extra `video` is installed.

    Args:
      path: the file.
      frames: RGB bytes.
      fps: frames per second.
      scale: nearest-neighbour magnification.
      crf: quality, 0 (lossless) to 51.
      comment: metadata of the file.

    Returns:
      Whether it was written.
    """
    if not mp4_available():
        return False
    from imageio_ffmpeg import get_ffmpeg_exe

    large = upscale(frames, scale)
    # yuv420p, which every player reads, has one chroma sample per 2x2 pixels.
    odd = [(0, 0), (0, large.shape[1] % 2), (0, large.shape[2] % 2), (0, 0)]
    large = np.pad(large, odd, mode="edge")
    size = f"{large.shape[2]}x{large.shape[1]}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps)]
    target = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", str(crf)]
    # Players on the web can begin before they have all of it.
    target += ["-movflags", "+faststart"]
    if comment is not None:
        target += ["-metadata", f"comment={comment}"]
    # Not imageio's writer: it forks with a hook, which JAX's threads do not survive.
    with replaced_file(path) as partial:
        done = subprocess.run(
            [get_ffmpeg_exe(), "-y", *source, "-i", "-", *target, str(partial)],
            input=large.tobytes(),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            message = done.stderr.decode(errors="replace").strip()[-300:]
            raise OSError(f"{path}: ffmpeg failed with {done.returncode}: {message}")
    return True


def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(file), size)


def contact_sheet(
    rows: Sequence[tuple[str, str, Frames]],
    *,
    scale: int = 3,
    gap: int = 4,
    margin: int = 16,
) -> Image.Image:
    """One picture with all frames: rows are videos, columns are frames.

    Args:
      rows: (heading, label, frames) of each video; a heading that differs from the one
        of the row before is printed above the row, labels to the left of their rows.
      scale: nearest-neighbour magnification.
      gap: pixels between frames.
      margin: pixels around everything.

    Returns:
      The picture.

    Raises:
      ValueError: if there is no video, or their sizes differ.
    """
    shapes = {frames.shape for _, _, frames in rows}
    if len(shapes) != 1:
        raise ValueError(
            f"contact sheet: expected videos of one shape, found {sorted(shapes)}"
        )
    ((count, height, width, _),) = shapes
    height, width = height * scale, width * scale
    title, small = font(17, bold=True), font(14)
    label_width = max(round(small.getlength(label)) for _, label, _ in rows)
    label_width += 12 if label_width else 0
    title_height, number_height = 34, 20
    headings = [i == 0 or rows[i][0] != rows[i - 1][0] for i in range(len(rows))]
    left = margin + label_width
    size = (
        max(
            left + count * (width + gap) - gap,
            *(margin + round(title.getlength(heading)) for heading, _, _ in rows),
        )
        + margin,
        2 * margin
        + number_height
        + sum(headings) * title_height
        + len(rows) * (height + gap),
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    y = margin
    for (heading, label, frames), new in zip(rows, headings, strict=True):
        if new:
            draw.text((margin, y + 8), heading, fill=_INK, font=title)
            y += title_height
        draw.text((margin, y + height // 2), label, fill=_GREY, font=small, anchor="lm")
        for column, frame in enumerate(upscale(frames, scale)):
            x = left + column * (width + gap)
            draw.rectangle((x - 1, y - 1, x + width, y + height), outline=_EDGE)
            sheet.paste(Image.fromarray(frame), (x, y))
        y += height + gap
    for column in range(count):
        centre = left + column * (width + gap) + width // 2
        draw.text((centre, y), f"{column}", fill=_GREY, font=small, anchor="ma")
    return sheet
