"""Reading pictures that may be anything, their pixels and the sizes of their videos."""

import io
import os
import struct
import zlib
from random import Random

import numpy as np
import pytest
from PIL import Image

from sixbit_jax.models.cogvideox.config import CogVideoXConfig
from sixbit_jax.models.cogvideox.description import describe as describe_cogvideox
from sixbit_jax.models.wan.config import WanConfig
from sixbit_jax.models.wan.description import describe as describe_wan
from sixbit_jax.pipelines.pictures import (
    PictureError,
    picture_pixels,
    pictures_of,
    read_picture,
    size_of_video,
)
from tests.golden.image_pipeline_cases import IMAGE_CASES, PICTURE_SIZE, picture


@pytest.fixture
def rgb():
    return picture("of a test")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_files_of_each_format_are_read(rgb, tmp_path, suffix):
    file = tmp_path / f"picture.{suffix}"
    rgb.save(file, quality=95)
    found = read_picture(file)
    assert (found.mode, found.size) == ("RGB", PICTURE_SIZE)
    error = np.abs(np.asarray(found, np.int32) - np.asarray(rgb, np.int32)).mean()
    assert error < (8 if suffix != "png" else 1e-9)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(rgb, tmp_path, orientation):
    turns = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    stored = rgb
    if orientation in turns:
        # What a camera that was held so stores: the inverse of how it is shown.
        stored = rgb.transpose(Image.Transpose[turns[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "p.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "p.png"), rgb)


def test_what_is_transparent_is_white(rgb, tmp_path):
    alpha = np.full((PICTURE_SIZE[1], PICTURE_SIZE[0]), 255, np.uint8)
    alpha[:10] = 0
    rgb.putalpha(Image.fromarray(alpha))
    rgb.save(tmp_path / "p.png")
    found = np.asarray(read_picture(tmp_path / "p.png"))
    assert (found[:10] == 255).all()
    np.testing.assert_array_equal(found[10:], np.asarray(rgb)[10:, :, :3])


def test_grey_pictures_of_8_and_16_bits_are_grey(tmp_path):
    grey = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64
    Image.fromarray(grey).save(tmp_path / "16.png")
    Image.fromarray((grey // 256).astype(np.uint8)).save(tmp_path / "8.png")
    for name, wanted in (("16.png", np.round(grey / 257)), ("8.png", grey // 256)):
        found = np.asarray(read_picture(tmp_path / name))
        assert found.shape == (32, 32, 3)
        np.testing.assert_array_equal(found, np.repeat(wanted[..., None], 3, -1))


def _png(width: int, height: int) -> bytes:
    """A header of a size, with a few bytes of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _animated(kind: str) -> bytes:
    frames = [picture(f"frame {i}") for i in range(3)]
    return _saved(frames[0], kind, save_all=True, append_images=frames[1:])


BAD = {
    "empty": (b"", r"expected a picture \(PNG, JPEG, WEBP\), found something else"),
    "text": (b"not a picture at all", "found something else"),
    "gif": (_saved(Image.new("RGB", (32, 32)), "GIF"), "found something else"),
    "1x1": (_saved(Image.new("RGB", (1, 1)), "PNG"), "16 to 16384 pixels a side.* 1x1"),
    "wide": (_png(20_000, 100), "16 to 16384 pixels a side, found 20000x100"),
    "large": (_png(10_000, 10_000), "at most 67,108,864 pixels, found 100,000,000"),
    "bomb": (_png(60_000, 60_000), "decompression bomb"),
    "strip": (_png(1000, 50), "at most 8:1, found 1000x50"),
    "no pixels": (_png(64, 64), "damaged or truncated"),
    "half a png": (_saved(picture("x"), "PNG")[:-900], "damaged or truncated"),
    "half a jpeg": (_saved(picture("x"), "JPEG")[:-200], "damaged or truncated"),
    "a jpeg's head": (_saved(picture("x"), "JPEG")[:-600], "damaged or truncated"),
    "half a webp": (_saved(picture("x"), "WEBP")[:-200], "damaged or truncated"),
    "moving png": (_animated("PNG"), "expected one picture, found an animation of 3"),
    "moving webp": (_animated("WEBP"), "expected one picture, found an animation of 3"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_what_is_no_picture_is_refused_by_name(tmp_path, content, message):
    file = tmp_path / "p.png"
    file.write_bytes(content)
    with pytest.raises(PictureError, match=message) as caught:
        read_picture(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_files_are_a_picture_or_a_clear_error(tmp_path, kind):
    whole = _saved(picture("x"), kind, exif=Image.Exif())
    random = Random(20_260_101)
    refused = 0
    for number in range(200):
        content = bytearray(whole)
        # Headers are short, and most of what goes wrong is there.
        end = len(content) if number % 2 else 64
        for _ in range(random.randint(1, 4)):
            content[random.randrange(end)] = random.randrange(256)
        file = tmp_path / "p"
        file.write_bytes(content[: random.randrange(len(content))] or content)
        if number % 3:
            file.write_bytes(content)
        try:
            assert read_picture(file).mode == "RGB"
        except PictureError:
            refused += 1
    assert refused > 50


def test_places_that_are_no_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, message in (
        ("none.png", "found no file"),
        ("fifo", "found a FIFO"),
        ("", "found a directory"),
    ):
        with pytest.raises(PictureError, match=message):
            read_picture(tmp_path / name)


@pytest.mark.parametrize("case", IMAGE_CASES.values(), ids=IMAGE_CASES)
def test_pixels_are_those_of_the_published_processor(case):
    found = picture_pixels(
        picture(f"image of {case.name}"), height=case.height, width=case.width
    )
    with np.load(case.file) as arrays:
        wanted = arrays["pixels"].astype(np.float64) / 127.5 - 1
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() < 2e-5


def test_cropping_keeps_proportions():
    # A circle that is stretched is no circle.
    y, x = np.mgrid[0:40, 0:120]
    disc = ((y - 19.5) ** 2 + (x - 59.5) ** 2 < 15**2) * np.uint8(255)
    wide = Image.fromarray(disc).convert("RGB")
    pixels = picture_pixels(wide, height=64, width=64, fit="crop")[0] > 0
    rows, columns = (pixels.any(axis).sum() for axis in (1, 0))
    assert abs(int(rows) - int(columns)) <= 1
    stretched = picture_pixels(wide, height=64, width=64)[0] > 0
    assert stretched.any(1).sum() > 2 * stretched.any(0).sum()


@pytest.mark.parametrize(
    ("size", "area", "wanted"),
    [
        # round(sqrt(area * aspect)) // 16 * 16, as in diffusers' example.
        ((832, 480), None, (480, 832)),
        ((1000, 1000), None, (624, 624)),
        ((3000, 4000), None, (720, 544)),
        ((1920, 1080), 720 * 1280, (720, 1280)),
    ],
)
def test_videos_of_wan_have_the_pictures_proportions(size, area, wanted):
    description = describe_wan(WanConfig(in_channels=36))
    found = size_of_video(description, Image.new("1", size), multiple=16, area=area)
    assert found == wanted


def test_videos_of_cogvideox_have_the_published_sizes():
    first = describe_cogvideox(CogVideoXConfig(in_channels=32))
    found = size_of_video(first, Image.new("1", (500, 900)), multiple=16)
    assert found == (480, 720)
    later = describe_cogvideox(
        CogVideoXConfig(
            in_channels=32,
            patch_size_t=2,
            sample_height=300,
            sample_width=300,
            ofs_embed_dim=512,
            use_rotary_positional_embeddings=True,
        )
    )
    for size, wanted in (
        ((1600, 900), (768, 1360)),
        ((900, 1600), (1360, 768)),
        ((1000, 1000), (768, 768)),
        ((1500, 1000), (768, 1152)),
    ):
        found = size_of_video(later, Image.new("1", size), multiple=16)
        assert found == wanted


def test_folders_and_lists_of_pictures(rgb, tmp_path):
    for name in ("b.png", "a.jpg", "c.webp", "notes.txt"):
        (tmp_path / name).write_text("a.jpg\n\nb.png\n")
    names = [file.name for file in pictures_of(tmp_path)]
    assert names == ["a.jpg", "b.png", "c.webp"]
    listed = pictures_of(tmp_path / "notes.txt")
    assert listed == [tmp_path / "a.jpg", tmp_path / "b.png"]
    (tmp_path / "empty").mkdir()
    for place in ("empty", "missing.txt"):
        with pytest.raises(PictureError):
            pictures_of(tmp_path / place)
