"""`inspect`, `convert` and `sample` on a tiny checkpoint."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sixbit_jax import cli
from sixbit_jax.demo.text import encode_captions
from tests.sixbit_jax.demo_checkpoint import write_tiny_checkpoint

CAPTION = "a red circle moves left on a blue background"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    source = write_tiny_checkpoint(folder / "source")
    target = str(folder / "nvfp4")
    assert cli.main(["convert", str(source), target, "--weights", "nvfp4"]) == 0
    embeds, negative = encode_captions([CAPTION, ""])
    save_file(
        {"prompt_embeds": embeds[None], "negative_prompt_embeds": negative[None]},
        folder / "prompt.safetensors",
    )
    return folder


def sample(folder, out, *options, prompt="prompt.safetensors"):
    return cli.main(
        [
            "sample",
            str(folder / "nvfp4"),
            f"--prompt-embeds={folder / prompt}",
            f"--out={out}",
            "--steps=2",
            "--quiet",
            *options,
        ]
    )


def inspect(capsys, path):
    capsys.readouterr()
    assert cli.main(["inspect", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_inspect_of_a_source_and_of_its_conversion_agree(folder, capsys):
    source = inspect(capsys, folder / "source")
    ours = inspect(capsys, folder / "nvfp4")
    assert (source["kind"], ours["kind"]) == ("diffusers", "converted")
    for key in ("model", "parameters", "blocks", "sites", "scheduler", "bf16_bytes"):
        assert source[key] == ours[key], key
    assert source["memory_ratio"] == 1.0
    assert ours["rotation"] == 128
    assert ours["memory_ratio"] > 2.5
    assert ours["dtypes"]["nvfp4"]["values"] > 0.8 * ours["parameters"]
    assert sum(d["bytes"] for d in ours["dtypes"].values()) == ours["memory_bytes"]


def test_inspect_prints_a_table(folder, capsys):
    assert cli.main(["inspect", str(folder / "nvfp4")]) == 0
    text = capsys.readouterr().out
    for word in (
        "CogVideoXTransformer3DModel",
        "attn_in",
        "nvfp4",
        "smaller than bf16",
    ):
        assert word in text


def test_convert_errors_have_the_exit_status_of_user_errors(folder, capsys):
    argv = ["convert", str(folder / "source"), str(folder / "nvfp4")]
    assert cli.main(argv) == cli.USER_ERROR
    assert "expected a new path" in capsys.readouterr().err


def test_sample_writes_latents_and_trace(folder, tmp_path):
    out, trace = tmp_path / "latents.safetensors", tmp_path / "trace.npz"
    assert sample(folder, out, f"--trace={trace}") == 0
    latents = load_file(out)["latents"]
    assert latents.shape == (1, 13, 3, 32, 32)
    assert latents.dtype == np.float32
    assert np.isfinite(latents).all()
    with np.load(trace) as arrays:
        assert arrays["route"].shape == (2, 2, 2, 4)
        assert not arrays["skip"].any()
    assert sorted(p.name for p in tmp_path.iterdir()) == [out.name, trace.name]


def test_sample_repeats_itself_and_depends_on_the_seed(folder, tmp_path):
    names = []
    for number, seed in enumerate((0, 0, 1)):
        names.append(tmp_path / f"{number}.safetensors")
        options = (f"--seed={seed}", "--frames=5", "--guidance=1")
        assert sample(folder, names[-1], *options) == 0
    first, again, other = (load_file(name)["latents"] for name in names)
    assert first.shape == (1, 5, 3, 32, 32)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_sample_with_8_bit_attention(folder, tmp_path):
    found = {}
    for name in ("bf16", "int8"):
        out, trace = tmp_path / name, tmp_path / f"{name}.npz"
        options = (f"--attention={name}", f"--trace={trace}", "--frames=5")
        assert sample(folder, out, *options) == 0
        with np.load(trace) as arrays:
            assert (arrays["int8_scores"] == (name == "int8")).all()
        found[name] = load_file(out)["latents"]
    change = np.abs(found["int8"] - found["bf16"]).max()
    assert 1e-4 < change < 1e-2


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"prompt_embeds": np.zeros((1, 16, 64))}, r"\[batch, tokens, 128\].*64"),
        ({"prompt": np.zeros((1, 16, 128))}, "expected the tensor prompt_embeds"),
        ({"prompt_embeds": np.full((1, 16, 128), np.nan)}, "NaN or Inf"),
        ({"prompt_embeds": np.zeros((1, 16, 128))}, "negative_embeds: expected"),
    ],
)
def test_sample_refuses_wrong_embeddings(folder, tmp_path, tensors, message, capsys):
    import re

    file = tmp_path / "wrong.safetensors"
    save_file({k: v.astype(np.float32) for k, v in tensors.items()}, file)
    out = tmp_path / "latents.safetensors"
    assert sample(folder, out, prompt=file) == cli.USER_ERROR
    assert re.search(message, capsys.readouterr().err)
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy=absent.json"], "found no file absent.json"),
        (["--stable-route=int8"], "--stable-route int8: expected --policy FILE.json"),
        (["--height=12"], "multiples"),
        (["--trace=absent/trace.npz"], "expected an existing directory"),
        (["--image-latents=absent"], "absent: expected a safetensors file"),
    ],
)
def test_sample_refuses_wrong_options(folder, tmp_path, options, message, capsys):
    out = tmp_path / "latents.safetensors"
    assert sample(folder, out, *options) == cli.USER_ERROR
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_sample_refuses_a_damaged_file(folder, tmp_path, capsys):
    file = tmp_path / "broken.safetensors"
    file.write_bytes(b"\xff" * 40)
    out = tmp_path / "latents.safetensors"
    assert sample(folder, out, prompt=file) == cli.USER_ERROR
    assert "expected a safetensors file" in capsys.readouterr().err


def test_sample_of_an_unconverted_directory_says_how_to_convert(tmp_path, capsys):
    file = tmp_path / "prompt.safetensors"
    save_file({"prompt_embeds": np.zeros((1, 16, 128), np.float32)}, file)
    argv = ["sample", str(tmp_path), f"--prompt-embeds={file}", "--out"]
    assert cli.main([*argv, str(tmp_path / "out")]) == cli.USER_ERROR
    assert "sixbit convert" in capsys.readouterr().err


def test_sample_replaces_files_only_and_finds_out_before_the_work(
    folder, tmp_path, monkeypatch, capsys
):
    import os

    from sixbit_jax import checkpoint

    def fail(*args, **options):
        pytest.fail("the work began")

    monkeypatch.setattr(checkpoint, "load", fail)
    os.mkfifo(tmp_path / "fifo")
    kept = tmp_path / "kept"
    kept.write_text("precious")
    (tmp_path / "link").symlink_to(kept)
    for out, trace, message in (
        ("fifo", "t.npz", "found a FIFO"),
        ("a", "link", "found a symbolic link"),
        ("a", "a", "expected another file than --out"),
    ):
        options = (f"--trace={tmp_path / trace}",)
        assert sample(folder, tmp_path / out, *options) == cli.USER_ERROR
        assert message in capsys.readouterr().err
    assert kept.read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "kept", "link"]


def test_sample_never_replaces_its_own_inputs(folder, tmp_path, capsys):
    prompts = tmp_path / "prompts.safetensors"
    save_file({"prompt_embeds": np.zeros((1, 16, 128), np.float32)}, prompts)
    before = prompts.read_bytes()
    assert sample(folder, prompts, prompt=prompts) == cli.USER_ERROR
    assert "expected a file that is not read" in capsys.readouterr().err
    assert prompts.read_bytes() == before
    header = folder / "nvfp4" / "sixbit.json"
    argv = ["sample", str(folder / "nvfp4"), f"--prompt-embeds={prompts}"]
    assert cli.main([*argv, f"--out={header}"]) == cli.USER_ERROR
    assert "expected a file that is not read" in capsys.readouterr().err
    assert cli.main(["inspect", str(folder / "nvfp4"), "--verify"]) == 0
