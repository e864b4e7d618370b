"""`tune` on a tiny checkpoint: what it writes, and going on after being killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import sixbit_jax
from sixbit_jax import cli
from sixbit_jax.formats.corrected import CorrectedArray
from tests.sixbit_jax.demo_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.slow

OPTIONS = ["--prompts=2", "--steps=4", "--guidance=1", "--frames=2", "--quiet"]
OPTIONS += ["--weight-bits=3", "--inner-rank=2", "--iterations=24", "--batch=2"]
OPTIONS += ["--checkpoint-every=4", "--rate-estimator=0.01"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tune") / "source")


def arguments(source, out):
    return ["tune", f"--model={source}", f"--out={out}", *OPTIONS]


@pytest.fixture(scope="module")
def tuned(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "run"
    assert cli.main(arguments(source, out)) == 0
    return out


def test_the_model_is_packed_and_says_how(tuned):
    model, header = sixbit_jax.load(tuned / "model")
    assert header.quantization["method"] == "q_vdit"
    assert header.quantization["weight_bits"] == 3
    weight = model.transformer_blocks.ff.down.weight.get_value()
    assert isinstance(weight, CorrectedArray)
    assert weight.format_name == "corrected-r1g3t16-uniform3"
    assert np.abs(weight.up).max() > 0
    assert (tuned / "losses.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tuned / "losses.npz") as losses:
        assert losses["loss"].shape == losses["relations"].shape == (24,)


def test_a_killed_run_goes_on_to_the_same_bits(source, tuned, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    shutil.copytree(tuned / "trajectories", out / "trajectories")
    command = [sys.executable, "-m", "sixbit_jax.cli", *arguments(source, out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    waited_for = out / "checkpoints" / "iteration_00000004"
    while not waited_for.is_dir() and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert waited_for.is_dir()
    assert not (out / "model").exists()
    assert cli.main(arguments(source, out)) == 0
    with np.load(tuned / "losses.npz") as whole, np.load(out / "losses.npz") as cut:
        for name in whole.files:
            np.testing.assert_array_equal(whole[name], cut[name])
    models = [sixbit_jax.load(folder / "model")[0] for folder in (tuned, out)]
    weights = [m.transformer_blocks.attn1.to_q.weight.get_value() for m in models]
    for name, values in weights[0].arrays().items():
        np.testing.assert_array_equal(values, weights[1].arrays()[name])


def test_a_directory_of_another_run_is_refused(source, tuned, capsys):
    changed = [*arguments(source, tuned), "--weight-bits=4"]
    assert cli.main(changed) == cli.USER_ERROR
    assert "another run" in capsys.readouterr().err
    changed = [*arguments(source, tuned), "--steps=5"]
    assert cli.main(changed) == cli.USER_ERROR
    assert "'steps': (5, 4)" in capsys.readouterr().err


def test_bad_options_leave_nothing(source, tmp_path, capsys):
    out = tmp_path / "run"
    command = arguments(source, out)
    for changed, message in (
        (["--weight-bits=2"], "weight_bits: expected 3 to 8"),
        (["--captions", "a purple cow"], "purple"),
        ([f"--model={tmp_path / 'none'}"], "none"),
    ):
        assert cli.main([*command, *changed]) == cli.USER_ERROR
        assert message in capsys.readouterr().err
        assert not out.exists()


def test_the_run_says_what_it_is(tuned):
    note = json.loads((tuned / "checkpoints" / "run.json").read_text())
    assert note["q_vdit"]["weight_bits"] == 3
    assert note["learning_rates"]["estimator"] == 0.01


def test_a_second_run_in_the_same_directory_is_refused(source, tmp_path, capsys):
    from sixbit_jax import files

    out = tmp_path / "run"
    out.mkdir()
    with files.locked(out / "run"):
        assert cli.main(arguments(source, out)) == cli.USER_ERROR
    assert "still running" in capsys.readouterr().err
    assert not list(out.iterdir())


def test_a_directory_that_no_run_made_is_refused(source, tuned, tmp_path, capsys):
    (tmp_path / "losses.npz").write_text("precious")
    assert cli.main(arguments(source, tmp_path)) == cli.USER_ERROR
    assert "losses.npz" in capsys.readouterr().err
    assert (tmp_path / "losses.npz").read_text() == "precious"
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    (run / "model" / "thesis.txt").write_text("precious")
    assert cli.main(arguments(source, run)) == cli.USER_ERROR
    assert "found thesis.txt" in capsys.readouterr().err
    assert (run / "model" / "thesis.txt").read_text() == "precious"
