"""Files of conditions, and directories that hold more than one network."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sixbit_jax import cli
from sixbit_jax.checkpoint import save
from sixbit_jax.commands._networks import load_network
from sixbit_jax.pipelines.header import PIPELINE_NAME, PipelineHeader
from sixbit_jax.sampling.noise import initial_noise
from tests.sixbit_jax.commands.networks import KINDS, TOKENS, WIDTH

SHAPE = (3, 4, 4, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network for text, and a prompt."""
    folder = tmp_path_factory.mktemp("conditions")
    save(KINDS["wan2.1-t2v"].make(0), folder / "model")
    rng = np.random.default_rng(0)
    save_file(
        {"prompt_embeds": rng.standard_normal((1, TOKENS, WIDTH), np.float32)},
        folder / "prompt.safetensors",
    )
    return folder


def sample(folder, out, *options, model="model"):
    argv = ["sample", str(folder / model), f"--out={out}", "--frames=3", "--height=4"]
    argv += [f"--prompt-embeds={folder / 'prompt.safetensors'}", "--width=4"]
    argv += ["--steps=2", "--guidance=1", "--as-given", "--quiet", "--dtype=float32"]
    return cli.main([*argv, *options])


def test_noise_that_a_seed_draws_is_the_run_of_that_seed(folder, tmp_path):
    seed = 2**40 + 1
    noise = np.asarray(initial_noise(seed, (1, *SHAPE)))
    save_file({"noise": noise}, tmp_path / "noise.safetensors")
    given = f"--noise={tmp_path / 'noise.safetensors'}"
    for name, options in (
        ("given", [given]),
        ("seeded", [f"--seed={seed}"]),
        ("low", [f"--seed={seed % 2**32}"]),
    ):
        assert sample(folder, tmp_path / name, *options) == 0
    given, seeded, low = (
        load_file(tmp_path / name)["latents"] for name in ("given", "seeded", "low")
    )
    np.testing.assert_array_equal(given, seeded)
    assert np.abs(seeded - low).max() > 0.01


def test_conditions_that_a_network_does_not_take_are_refused_together(
    folder, tmp_path, capsys
):
    tensors = {"image_latents": (1, 3, 4, 4, 4), "image_embeds": (1, 6, 24)}
    options = []
    for name, shape in tensors.items():
        save_file({name: np.ones(shape, np.float32)}, tmp_path / name)
        options.append(f"--{name.replace('_', '-')}={tmp_path / name}")
    out = tmp_path / "out"
    assert sample(folder, out, *options) == cli.USER_ERROR
    error = capsys.readouterr().err
    assert "image_latents: expected none for this network" in error
    assert "image_embeds: expected none for this network" in error
    assert not out.exists()


def test_files_that_do_not_fit_the_prompts_are_refused_together(
    folder, tmp_path, capsys
):
    save_file({"image_latents": np.ones((2, 3), np.float32)}, tmp_path / "two")
    save_file({"other": np.ones((1, 3), np.float32)}, tmp_path / "other")
    options = [f"--image-latents={tmp_path / 'two'}"]
    options.append(f"--first-frames={tmp_path / 'other'}")
    assert sample(folder, tmp_path / "out", *options) == cli.USER_ERROR
    error = capsys.readouterr().err
    assert "a row for each of 1 prompts, found the shape [2, 3]" in error
    assert "expected the tensor first_frames, found other" in error


def test_a_second_scale_needs_a_second_network(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert sample(folder, out, "--guidance-2=3") == cli.USER_ERROR
    assert "expected a directory with a pair" in capsys.readouterr().err


def test_the_transformers_of_a_pipeline_are_a_network(folder, tmp_path):
    names = ("transformer", "transformer_2")
    header = PipelineHeader(
        "WanPipeline",
        dict.fromkeys(names, "WanTransformer3DModel"),
        options={"boundary_ratio": 0.9},
        scheduler={"_class_name": "UniPCMultistepScheduler", "flow_shift": 7.0},
    )
    for seed, name in enumerate(names):
        save(KINDS["wan2.1-t2v"].make(seed), tmp_path / name)
    (tmp_path / PIPELINE_NAME).write_text(header.to_json())
    found = load_network(tmp_path, second_guidance=3.0)
    assert (found.low_noise.boundary, found.low_noise.guidance_scale) == (0.9, 3.0)
    assert found.model.pair_boundary == found.low_noise.model.pair_boundary == 0.9
    assert found.header.scheduler["flow_shift"] == 7.0
    first, second = (m.proj_out.bias[...] for m in (found.model, found.low_noise.model))
    assert np.abs(first - second).max() > 0.01
    alone = replace(header, components={names[0]: "WanTransformer3DModel"})
    (tmp_path / PIPELINE_NAME).write_text(alone.to_json())
    assert load_network(tmp_path).low_noise is None
