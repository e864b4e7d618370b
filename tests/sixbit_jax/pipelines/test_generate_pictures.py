"""`sixbit generate` with pictures, as a user runs it."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from sixbit_jax import cli
from sixbit_jax.checkpoint import CheckpointError
from sixbit_jax.checkpoint.header import read_header
from sixbit_jax.pipelines.pipeline import load_pipeline
from tests.golden.image_pipeline_cases import picture

SMALL = ["--frames", "5", "--steps", "2", "--no-cache", "--quiet"]
SIZE = ["--size", "48x32"]
PROMPT = "a red circle moves left"


def generate(pipeline, *words) -> int:
    return cli.main(["generate", str(pipeline), *map(str, words), *SMALL])


def written(folder):
    return {f.stem: json.loads(f.read_text()) for f in sorted(folder.glob("*.json"))}


@pytest.fixture
def pictures(tmp_path):
    """A folder with a wide and a tall picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture("wide").save(folder / "a.png")
    picture("tall").rotate(90, expand=True).save(folder / "b.jpg")
    return folder


def test_conversion_takes_the_image_encoder_along(wan_i2v):
    header = read_header(wan_i2v[1] / "image_encoder")
    assert header.model_class == "CLIPVisionModel"
    assert any(spec.compressed for spec, _ in header.specs())
    copied = wan_i2v[1] / "image_processor" / "preprocessor_config.json"
    assert json.loads(copied.read_text())["crop_size"] == {"height": 28, "width": 28}


def test_videos_of_a_folder_have_the_proportions_of_their_pictures(
    wan_i2v, pictures, tmp_path, capsys
):
    out = tmp_path / "clips"
    words = ["--prompt", PROMPT, "--images", pictures, "--area", "64x48", "--out", out]
    assert generate(wan_i2v[1], *words) == 0
    found = written(out)
    sizes = [(f["settings"]["width"], f["settings"]["height"]) for f in found.values()]
    assert sizes == [(64, 32), (32, 64)]
    assert [f["image"]["name"] for f in found.values()] == ["a.png", "b.jpg"]
    assert set(found["0001-seed0"]["seconds"]) >= {"picture", "sampling", "vae"}
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    capsys.readouterr()
    assert generate(wan_i2v[1], *words) == 0
    assert capsys.readouterr().err.count("there already") == 2
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before
    picture("another").save(pictures / "a.png")
    assert generate(wan_i2v[1], *words) == 0
    assert capsys.readouterr().err.count("there already") == 1


def test_the_picture_and_how_it_fits_decide_the_video(wan_i2v):
    pipe = load_pipeline(wan_i2v[1], keep=("transformer", "vae"), dtype="float32")
    size = {"frames": 5, "height": 32, "width": 48, "num_steps": 2}
    first = pipe(PROMPT, image=picture("a"), **size).frames
    again = pipe(PROMPT, image=picture("a"), **size).frames
    np.testing.assert_array_equal(first, again)
    for image, fit in ((picture("b"), "stretch"), (picture("a"), "crop")):
        other = pipe(PROMPT, image=image, fit=fit, **size).frames
        assert np.abs(other.astype(int) - first.astype(int)).max() > 2


def test_pictures_that_are_not_taken_or_lacking_are_said(
    wan, wan_i2v, pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(pictures)
    (pictures / "broken.png").write_bytes((pictures / "a.png").read_bytes()[:900])
    Image.new("RGB", (1, 1)).save(pictures / "dot.png")
    (pictures / "list.txt").write_text("a.png\nnowhere.png\n")
    (pictures / "prompts.txt").write_text("one\ntwo\nthree\n")
    before = sorted(pictures.iterdir())
    text, image = wan[1], wan_i2v[1]
    one = ["--prompt", PROMPT]
    for pipe, words, message in (
        (text, [*one, "--image", "a.png"], r"image: expected none for WanPipeline"),
        (image, one, r"image: expected a picture for WanImageToVideoPipeline"),
        (
            image,
            [*one, "--image", "a.png", "--last-image", "b.jpg"],
            "last_image: expected none for WanImageToVideo",
        ),
        (image, [*one, "--last-image", "b.jpg"], "expected one beside last_image"),
        (image, [*one, "--image", "broken.png"], "broken.png: damaged or truncated"),
        (image, [*one, "--image", "dot.png"], "16 to 16384 pixels a side, found 1x1"),
        (image, [*one, "--image", "c.png"], "c.png: expected a picture, found no file"),
        (image, [*one, "--images", "list.txt"], "nowhere.png: expected a picture"),
        (
            image,
            ["--prompts", "prompts.txt", "--images", "list.txt"],
            "expected one or as many as prompts, 3, found 2",
        ),
        (image, [*one, "--area", "64x48"], "--area: expected a picture"),
    ):
        sized = [] if "--area" in words else SIZE
        assert generate(pipe, *words, *sized, "--out", tmp_path / "x.gif") == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) <= 3, error
        assert re.search(message, error), error
    assert not (tmp_path / "x.gif").exists()
    assert sorted(pictures.iterdir()) == before


def test_a_network_that_reads_clip_needs_it(wan_i2v, tmp_path):
    shutil.copytree(wan_i2v[1], tmp_path / "pipe")
    shutil.rmtree(tmp_path / "pipe" / "image_processor")
    with pytest.raises(CheckpointError, match="image_processor: expected"):
        load_pipeline(tmp_path / "pipe")
