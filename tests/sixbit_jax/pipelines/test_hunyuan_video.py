"""HunyuanVideo: two encoders, a scale that the network reads, its options."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from convert.root import convert_root
from sixbit_jax import cli
from sixbit_jax.checkpoint import CheckpointError
from sixbit_jax.pipelines.pipeline import load_pipeline
from sixbit_jax.pipelines.prompts import PromptEmbeds
from tests.golden.image_pipeline_cases import IMAGE_CASES, picture
from tests.golden.pipeline_cases import CASES, write_root

SIZE = {"frames": 5, "height": 32, "width": 48, "num_steps": 2}
PROMPT = "a red circle moves left"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A tiny HunyuanVideo with quantized weights."""
    folder = tmp_path_factory.mktemp("hunyuan_video")
    root = write_root(CASES["hunyuan_video"], folder)
    convert_root(root, folder / "converted", weights="nvfp4")
    return folder / "converted"


@pytest.fixture(scope="module")
def pipe(converted):
    keep = ("transformer", "vae", "text_encoder", "text_encoder_2")
    return load_pipeline(converted, keep=keep)


def test_words_and_both_scales_decide_the_video(pipe):
    def video(prompt=PROMPT, **options):
        return pipe(prompt, **SIZE, **options).frames.astype(int)

    first = video(seed=1)
    np.testing.assert_array_equal(first, video(seed=1, guidance_scale=6.0))
    # Without classifier-free guidance nothing reads the negative prompt.
    np.testing.assert_array_equal(first, video(seed=1, negative_prompt="static"))
    for options in (
        {"prompt": "a green square"},
        {"guidance_scale": 1.0},
        {"true_cfg_scale": 3.0},
        {"true_cfg_scale": 3.0, "negative_prompt": "static"},
    ):
        other = video(seed=1, **options)
        assert np.abs(other - first).max() > 1, options
        first = other


def test_both_encoders_and_the_mask_matter(pipe):
    embeds = pipe.encode([PROMPT]).embeds[PROMPT]
    assert (embeds.text.shape, embeds.pooled.shape) == ((256, 32), (24,))
    assert 0 < embeds.mask.sum() < 256
    from_words = pipe(PROMPT, **SIZE).frames
    given = pipe(embeds, **SIZE)
    np.testing.assert_array_equal(from_words, given.frames)
    assert given.prompt == ""
    hidden = np.where(embeds.mask[:, None], embeds.text, 9.0)
    padded = dataclasses.replace(embeds, text=hidden)
    np.testing.assert_array_equal(from_words, pipe(padded, **SIZE).frames)
    for changes in ({"pooled": -embeds.pooled}, {"mask": np.ones(256, bool)}):
        other = pipe(dataclasses.replace(embeds, **changes), **SIZE).frames
        assert (other != from_words).any(), changes


def test_published_settings_and_scales_of_other_networks(pipe):
    settings = pipe.settings()
    assert (settings.frames, settings.height, settings.width) == (129, 720, 1280)
    assert (settings.num_steps, settings.fps) == (50, 24)
    assert (settings.guidance_scale, settings.embedded_guidance) == (1.0, 6.0)
    assert not settings.guided
    guided = pipe.settings(guidance_scale=4.0, true_cfg_scale=3.0)
    assert (guided.guidance_scale, guided.embedded_guidance) == (3.0, 4.0)
    assert guided.guided
    with pytest.raises(ValueError, match="guidance_scale: expected a finite"):
        pipe.settings(guidance_scale=float("nan"))


def test_other_networks_have_one_scale(wan):
    with pytest.raises(ValueError, match="true_cfg_scale: expected none"):
        load_pipeline(wan[1]).settings(true_cfg_scale=3.0)


def test_generate_writes_what_made_the_video(converted, tmp_path):
    words = ["generate", converted, "--prompt", PROMPT, "--out", tmp_path / "x.mp4"]
    words += ["--size", "48x32", "--frames", "5", "--steps", "2", "--policy", "int8"]
    words += ["--guidance", "5", "--true-cfg", "2", "--attention", "int8"]
    words += ["--negative-prompt", "static", "--no-cache", "--quiet"]
    assert cli.main([str(word) for word in words]) == 0
    assert (tmp_path / "x.mp4").stat().st_size > 500
    facts = json.loads((tmp_path / "x.json").read_text())
    assert facts["settings"]["embedded_guidance"] == 5.0
    assert facts["settings"]["guidance_scale"] == 2.0
    assert facts["negative_prompt"] == "static"
    assert facts["pipeline"] == "HunyuanVideoPipeline"


def test_a_second_encoder_that_is_missing_is_said(converted, tmp_path):
    shutil.copytree(converted, tmp_path / "pipe")
    header = tmp_path / "pipe" / "sixbit_pipeline.json"
    values = json.loads(header.read_text())
    del values["components"]["text_encoder_2"]
    header.write_text(json.dumps(values))
    shutil.rmtree(tmp_path / "pipe" / "tokenizer_2")
    with pytest.raises(CheckpointError) as caught:
        load_pipeline(tmp_path / "pipe")
    assert "text_encoder_2: expected this component" in str(caught.value)
    assert "tokenizer_2: expected" in str(caught.value)


def test_image_to_video_takes_embeddings_and_leaves_llava_out(tmp_path):
    case = IMAGE_CASES["hunyuan_video_i2v_concat"]
    root = write_root(case, tmp_path)
    index = json.loads((root / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "LlavaForConditionalGeneration"]
    (root / "model_index.json").write_text(json.dumps(index))
    (root / "text_encoder").mkdir()
    report = convert_root(root, tmp_path / "pipe")
    assert report.missing.keys() == {"text_encoder"}
    pipe = load_pipeline(tmp_path / "pipe", keep=("transformer", "vae"))
    with pytest.raises(ValueError, match="prompt: expected PromptEmbeds for a Hunyuan"):
        pipe(PROMPT, image=picture("a"), **SIZE)
    embeds = PromptEmbeds(**case.embeds())
    first = pipe(embeds, image=picture("a"), **SIZE)
    # The first latent's frames are cut off.
    assert first.frames.shape == (1, 32, 48, 3)
    other = pipe(embeds, image=picture("b"), **SIZE)
    assert np.abs(first.frames.astype(int) - other.frames.astype(int)).max() > 2
    with pytest.raises(ValueError, match="image: expected a picture for HunyuanVideo"):
        pipe(embeds, **SIZE)
