import subprocess

import numpy as np
import pytest
from PIL import Image

from sixbit_jax.report import video


def moving_square(frames=5, size=16):
    clip = np.zeros((frames, size, size, 3), np.uint8)
    clip[..., 2] = 255
    for i in range(frames):
        clip[i, 4:8, i : i + 4] = (255, 0, 0)
    return clip


def test_pixels_cover_the_range_and_clip():
    latents = np.array([-3.0, -1.0, 0.0, 1.0, np.nan], np.float32)
    latents = np.broadcast_to(latents[:, None, None, None], (5, 3, 2, 2))
    pixels = video.to_pixels(latents)
    assert pixels.shape == (5, 2, 2, 3)
    assert pixels[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 128]


def test_pixels_need_three_channels():
    with pytest.raises(ValueError, match=r"3, height, width.*\(5, 16, 2, 2\)"):
        video.to_pixels(np.zeros((5, 16, 2, 2), np.float32))


def test_gif_holds_every_frame_exactly_and_plays_at_its_speed(tmp_path):
    clip = moving_square()
    video.write_gif(tmp_path / "a.gif", clip, fps=8, scale=3)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == len(clip)
        assert gif.info["loop"] == 0
        for number, frame in enumerate(clip):
            gif.seek(number)
            assert gif.info["duration"] in (120, 130)
            np.testing.assert_array_equal(
                np.asarray(gif.convert("RGB")), video.upscale(frame, 3)
            )
    assert [f.name for f in tmp_path.iterdir()] == ["a.gif"]


@pytest.mark.skipif(not video.mp4_available(), reason="needs the extra `video`")
def test_mp4_is_a_video_of_that_size_even_for_odd_sizes(tmp_path):
    from imageio_ffmpeg import get_ffmpeg_exe

    clip = moving_square(size=15)
    assert video.write_mp4(tmp_path / "a.mp4", clip, scale=5)
    probe = subprocess.run(
        [get_ffmpeg_exe(), "-i", str(tmp_path / "a.mp4")],
        capture_output=True,
        text=True,
        check=False,
    ).stderr
    assert "h264" in probe
    assert "76x76" in probe
    assert "8 fps" in probe


def test_mp4_without_the_extra_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "mp4_available", lambda: False)
    assert not video.write_mp4(tmp_path / "a.mp4", moving_square())
    assert not list(tmp_path.iterdir())


def test_contact_sheet_shows_every_frame_of_every_row():
    clip = moving_square(frames=4)
    sheet = np.asarray(
        video.contact_sheet(
            [("one", "full", clip), ("one", "6-bit", clip), ("two", "full", clip)],
            scale=2,
        )
    )
    red = (sheet == (255, 0, 0)).all(-1).sum()
    assert red == 3 * 4 * (4 * 2) ** 2


def test_contact_sheet_of_different_sizes_is_refused():
    rows = [("a", "", moving_square()), ("b", "", moving_square(frames=3))]
    with pytest.raises(ValueError, match="videos of one shape"):
        video.contact_sheet(rows)
