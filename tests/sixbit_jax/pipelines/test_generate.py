"""`sixbit convert` of a root and `sixbit generate`, as a user runs them."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import sixbit_jax
from convert.errors import ConversionError
from convert.root import convert_root
from sixbit_jax import cli
from sixbit_jax.checkpoint import CheckpointError
from sixbit_jax.pipelines import memory
from sixbit_jax.pipelines.memory import check
from sixbit_jax.pipelines.pipeline import Stopped, load_pipeline
from sixbit_jax.policies.policy_file import PolicyFile, config_hash, save_policy

SMALL = ["--size", "48x32", "--frames", "5", "--steps", "2", "--no-cache", "--quiet"]
PROMPT = "a red circle moves left"


def generate(pipeline, *words) -> int:
    return cli.main(["generate", str(pipeline), *map(str, words), *SMALL])


@pytest.fixture(scope="module")
def made(wan, tmp_path_factory):
    """A folder with two videos of one prompt."""
    folder = tmp_path_factory.mktemp("made") / "clips"
    words = ["--prompt", PROMPT, "--videos", "2", "--out", folder, "--policy", "int8"]
    assert generate(wan[1], *words) == 0
    return folder


def test_videos_have_their_size_and_say_what_made_them(made):
    from imageio_ffmpeg import get_ffmpeg_exe

    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    for seed in (0, 1):
        file = made / f"0001-seed{seed}.mp4"
        command = [get_ffmpeg_exe(), "-i", str(file), *raw]
        read = subprocess.run(command, capture_output=True, check=True)
        assert len(read.stdout) == 5 * 32 * 48 * 3
        assert b"Video: h264" in read.stderr
        assert b"48x32" in read.stderr
        facts = json.loads(file.with_suffix(".json").read_text())
        assert facts["prompt"] == PROMPT
        assert facts["seed"] == seed
        assert facts["policy"] == "int8"
        assert set(facts["seconds"]) == {"text", "sampling", "vae", "load"}
        assert b"a red circle moves left" in file.read_bytes()
    first, second = ((made / f"0001-seed{seed}.mp4").read_bytes() for seed in (0, 1))
    assert first != second


def test_videos_that_are_there_are_not_made_again(wan, made, capsys):
    before = {file: file.stat().st_mtime_ns for file in made.iterdir()}
    words = ["--prompt", PROMPT, "--videos", "2", "--out", made, "--policy", "int8"]
    assert generate(wan[1], *words) == 0
    assert capsys.readouterr().err.count("there already") == 2
    assert {file: file.stat().st_mtime_ns for file in made.iterdir()} == before


def test_a_video_of_other_settings_is_made_anew(wan, made, tmp_path):
    folder = tmp_path / "clips"
    shutil.copytree(made, folder)
    words = ["--prompt", PROMPT, "--out", folder, "--policy", "nvfp4"]
    assert generate(wan[1], *words) == 0
    facts = json.loads((folder / "0001-seed0.json").read_text())
    assert facts["policy"] == "nvfp4"
    assert json.loads((folder / "0001-seed1.json").read_text())["policy"] == "int8"


def test_the_second_start_compiles_nothing(wan, tmp_path):
    """A process finds the programs of the one before it."""
    environment = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_LOG_COMPILES": "0",
        "JAX_COMPILATION_CACHE_DIR": "",
    }
    folder = tmp_path / "sixbit-jax" / "programs"
    words = [w for w in SMALL if w != "--no-cache"]
    entries = []
    for name in ("a.gif", "b.gif"):
        command = [sys.executable, "-m", "sixbit_jax.cli", "generate", str(wan[1])]
        command += ["--prompt", PROMPT, "--out", str(tmp_path / name), *words]
        subprocess.run(command, check=True, env=environment, capture_output=True)
        entries.append({f.name for f in folder.iterdir() if f.name.endswith("-cache")})
    assert entries[0]
    assert entries[1] == entries[0]
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.avi"], "a folder or a file with .mp4 or .gif, found x.avi"),
        (["--out", "nowhere/x.mp4"], "expected a folder .*nowhere for it"),
        (["--out", "x.mp4", "--videos", "2"], "expected a folder for 2 videos"),
        (["--out", "x.mp4", "--policy", "missing.json"], "found no file missing.json"),
        (["--out", "x.mp4", "--scheduler", "ddim"], "one of unipc, euler.* 'ddim'"),
        (["--out", "x.mp4", "--frames", "6"], "4 n . 1, found 6; the nearest is 5"),
        (["--out", "x.mp4", "--size", "50x32"], "found 50x32; the nearest is 48x32"),
        (["--out", "x.mp4", "--stable-route", "int8"], "expected --policy FILE.json"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_leaves_nothing(
    wan, tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    command = ["generate", str(wan[1]), "--prompt", PROMPT, *SMALL, *words]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) <= 3
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


def write_policy(pipeline, path, **numbers):
    """A policy file with skips, of a pipeline's network."""
    pipe = load_pipeline(pipeline)
    values = {
        "model_class": pipe.headers["transformer"].model_class,
        "config_hash": config_hash(pipe.network_config),
        "sites": pipe.description.sites,
        "num_blocks": pipe.description.num_blocks,
        "tau": 0.1,
    }
    save_policy(PolicyFile(**(values | numbers)), path)


def test_the_delta_cache_of_a_policy_file_counts(wan, tmp_path, monkeypatch, capsys):
    write_policy(wan[1], tmp_path / "policy.json")
    out = tmp_path / "x.mp4"
    words = ["--prompt", PROMPT, "--policy", tmp_path / "policy.json", "--out", out]
    pipe = load_pipeline(wan[1], dtype="float32")
    settings = pipe.settings(frames=5, height=32, width=48, num_steps=2)
    slots = 2 * pipe.description.num_blocks
    without, needed = (pipe.memory(settings, cached_blocks=n) for n in (0, slots))
    assert needed.cache > 0
    # Make the cache what does not fit.
    monkeypatch.setattr(memory, "check", check_sampling)
    monkeypatch.setattr(memory, "device_memory", lambda: without.sampling)
    assert generate(wan[1], *words) == 2
    assert "of it the delta cache" in capsys.readouterr().err
    assert not out.exists()


def check_sampling(found, available):
    """The check, where sampling is the largest part."""
    if found.sampling > available:
        check(replace(found, text=0, vae=0), available)


def test_a_policy_of_another_network_is_refused_at_once(wan, tmp_path, capsys):
    write_policy(wan[1], tmp_path / "policy.json", num_blocks=7)
    words = ["--prompt", PROMPT, "--policy", tmp_path / "policy.json"]
    assert generate(wan[1], *words, "--out", tmp_path / "x.mp4") == 2
    error = capsys.readouterr().err
    assert "calibrated for another model" in error
    assert "blocks: the policy is for 7" in error


def test_files_of_others_are_not_replaced(wan, tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"mine": 1}')
    assert generate(wan[1], "--prompt", PROMPT, "--out", tmp_path / "x.mp4") == 2
    assert "no other files there" in capsys.readouterr().err
    assert (tmp_path / "x.json").read_text() == '{"mine": 1}'
    assert not (tmp_path / "x.mp4").exists()


def test_policies_need_quantized_weights(wan, tmp_path, capsys):
    convert_root(wan[0], tmp_path / "plain", only=["transformer", "vae"])
    with pytest.raises(CheckpointError, match=r"text_encoder: .*left out: not asked"):
        load_pipeline(tmp_path / "plain")
    convert_root(wan[0], tmp_path / "whole")
    words = ["--prompt", PROMPT, "--policy", "int8", "--out", tmp_path / "x.mp4"]
    assert generate(tmp_path / "whole", *words) == 2
    assert "expected quantized weights" in capsys.readouterr().err


def test_a_root_that_lacks_components_names_all_of_them(wan, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(wan[0], root)
    shutil.rmtree(root / "vae")
    (root / "text_encoder/config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(ConversionError) as caught:
        convert_root(root, tmp_path / "out")
    assert "vae: expected a folder vae/" in str(caught.value)
    assert "text_encoder: config.json architectures: expected" in str(caught.value)
    assert "BertModel" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_is_missing_is_said_before_sampling(wan, tmp_path):
    shutil.copytree(wan[1], tmp_path / "pipe")
    for file in (tmp_path / "pipe" / "tokenizer").iterdir():
        file.unlink()
    pipe = load_pipeline(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"expected spiece.model.*found nothing"):
        pipe.encode([PROMPT])


def test_prompts_of_a_file_and_long_ones_are_said(wan, tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text(f"{PROMPT}\n\n" + "red circle " * 300 + "\n", encoding="utf-8")
    out = tmp_path / "clips"
    words = ["--prompts", file, "--out", out, "--guidance", "1"]
    assert generate(wan[1], *words) == 0
    assert "prompt too long, its end was not read" in capsys.readouterr().err
    names = sorted(path.name for path in out.glob("*.mp4"))
    assert names == ["0001-seed0.mp4", "0002-seed0.mp4"]
    for content in (b"", b"\xff\xfe\x00"):
        file.write_bytes(content)
        assert generate(wan[1], *words) == 2


def test_a_callback_ends_the_run_in_any_part(wan):
    pipe = load_pipeline(wan[1], keep=("transformer", "vae", "text_encoder"))
    size = {"frames": 5, "height": 32, "width": 48, "num_steps": 2}
    for wanted in ("text", "sampling", "vae"):

        def tell(part, done, count, wanted=wanted):
            return part == wanted and done > 0

        with pytest.raises(Stopped):
            pipe(PROMPT, tell=tell, **size)
    video = pipe(PROMPT, **size)
    assert video.frames.shape == (5, 32, 48, 3)
    again = pipe(PROMPT, **size)
    np.testing.assert_array_equal(video.frames, again.frames)


def test_inspect_describes_the_whole_pipeline(wan, capsys):
    assert cli.main(["inspect", str(wan[1])]) == 0
    out = capsys.readouterr().out
    for word in ("WanPipeline", "text_encoder", "UMT5EncoderModel", "vae", "tokenizer"):
        assert word in out


def test_a_video_on_several_devices_is_that_of_one(wan, tmp_path):
    pipe = load_pipeline(wan[1])
    given = {"frames": 5, "height": 32, "width": 48, "num_steps": 2}
    mesh = sixbit_jax.make_mesh({"guidance": 2, "fsdp": 2})
    alone, shared = (pipe(PROMPT, mesh=m, **given) for m in (None, mesh))
    np.testing.assert_array_equal(shared.trace.route, alone.trace.route)
    difference = shared.frames.astype(int) - alone.frames.astype(int)
    assert np.abs(difference).max() <= 1
    out = tmp_path / "shared.mp4"
    words = ["--prompt", PROMPT, "--out", out, "--mesh", "guidance=2,fsdp=2"]
    assert generate(wan[1], *words) == 0
    assert out.is_file()
