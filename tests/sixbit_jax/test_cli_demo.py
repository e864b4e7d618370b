"""`demo` and `compare` on a tiny checkpoint."""

import json
import os

import numpy as np
import pytest

from sixbit_jax import cli
from tests.sixbit_jax.demo_checkpoint import write_tiny_checkpoint

CAPTIONS = [
    "a red circle moves left on a blue background",
    "a cyan cross grows on a white background",
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("demo") / "source")


@pytest.fixture(scope="module")
def demo(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "demo"
    argv = ["demo", f"--checkpoint={source}", f"--out={out}", "--policy=w4a8"]
    assert cli.main([*argv, "--steps=2", "--quiet", "--captions", *CAPTIONS]) == 0
    return out


def report_of(out):
    return json.loads((out / "report.json").read_text())


def test_demo_reports_both_configurations(demo):
    report = report_of(demo)
    full, low = report["records"]
    assert (full["method"], low["method"]) == ("full precision", "W4A8")
    assert (full["activation_bits"], low["activation_bits"]) == (16.0, 8.0)
    assert full["weight_bytes"] > 2.5 * low["weight_bytes"]
    assert np.isfinite(low["psnr_db"])
    assert 0 <= full["attribute_score"] <= 1
    assert len(low["seconds_each"]) == len(CAPTIONS)
    assert report["versions"]["jax"]


def test_demo_writes_videos_pictures_page_and_models(demo):
    names = set(report_of(demo)["files"])
    assert {
        "contact_sheet.png",
        "videos.gif",
        "1_full-precision.gif",
        "2_w4a8.gif",
        "routes_1_w4a8.png",
        "signals_w4a8.png",
    } <= names
    for name in names | {"model/sixbit.json", "model-nvfp4/sixbit.json"}:
        assert (demo / name).is_file(), name
    assert str(demo) not in (demo / "report.html").read_text()


def test_what_demo_writes_is_input_for_sample(demo, tmp_path):
    out = tmp_path / "latents.safetensors"
    prompts = demo / "prompts.safetensors"
    argv = ["sample", str(demo / "model-nvfp4"), f"--prompt-embeds={prompts}"]
    argv += [f"--out={out}", "--steps=1", "--guidance=1", "--quiet", "--frames=1"]
    assert cli.main(argv) == 0
    assert out.is_file()


def test_an_earlier_report_is_replaced(source, demo, tmp_path):
    out = tmp_path / "again"
    argv = ["demo", f"--checkpoint={source}", f"--out={out}", "--policy=none"]
    argv += ["--steps=1", "--quiet", "--guidance=1", "--captions"]
    assert cli.main([*argv, CAPTIONS[0]]) == 0
    assert cli.main([*argv, CAPTIONS[1]]) == 0
    assert report_of(out)["prompts"] == [CAPTIONS[1]]
    assert [r["method"] for r in report_of(out)["records"]] == ["full precision"]
    assert [p.name for p in tmp_path.iterdir()] == ["again"]


def test_demo_from_a_checkout_that_is_not_installed(source, tmp_path, monkeypatch):
    import importlib.metadata

    def fail(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", fail)
    argv = ["demo", f"--checkpoint={source}", f"--out={tmp_path / 'o'}"]
    argv += ["--policy=none", "--steps=1", "--quiet", "--guidance=1", "--captions"]
    assert cli.main([*argv, CAPTIONS[0]]) == 0
    assert report_of(tmp_path / "o")["versions"]["jax"] == "not installed"


def test_a_folder_with_a_file_of_a_reports_name_is_never_replaced(
    source, tmp_path, capsys
):
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "thesis.txt").write_text("precious")
    argv = ["demo", f"--checkpoint={source}", f"--out={tmp_path}"]
    assert cli.main(argv) == cli.USER_ERROR
    assert "report.json, thesis.txt" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--captions", "a purple dog sleeps"], "a purple dog sleeps"),
        (["--policy", "w9a9"], "found 'w9a9'"),
    ],
)
def test_demo_refuses_wrong_options(source, tmp_path, options, message, capsys):
    out = tmp_path / "out"
    argv = ["demo", f"--checkpoint={source}", f"--out={out}", "--quiet", *options]
    assert cli.main(argv) == cli.USER_ERROR
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_demo_never_replaces_anything_but_a_report(source, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious")
    argv = ["demo", f"--checkpoint={source}", f"--out={tmp_path}"]
    assert cli.main(argv) == cli.USER_ERROR
    error = capsys.readouterr().err
    assert "one that this command wrote earlier" in error
    assert "thesis.txt" in error
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_compare_reports_any_two_configurations(source, tmp_path):
    out = tmp_path / "out"
    argv = ["compare", "w4a8", "step-cache", f"--model={source}", f"--out={out}"]
    argv += ["--steps=7", "--quiet", "--guidance=1", "--captions", CAPTIONS[0]]
    assert cli.main(argv) == 0
    first, second = report_of(out)["records"]
    assert (first["method"], second["method"]) == ("W4A8", "step cache")
    assert second["skip_fraction"] == pytest.approx(2 / 7)
    assert second["cache_bytes"] > 0


def test_compare_takes_prompt_embeddings_and_a_converted_model(demo, tmp_path):
    out = tmp_path / "out"
    argv = ["compare", "w4a16", "w4a4", f"--model={demo / 'model-nvfp4'}"]
    argv += [f"--prompt-embeds={demo / 'prompts.safetensors'}", f"--out={out}"]
    assert cli.main([*argv, "--steps=1", "--quiet"]) == 0
    report = report_of(out)
    assert report["prompts"] == ["prompt 1", "prompt 2"]
    assert "attribute_score" not in report["records"][0]


def test_two_policy_files_of_one_name_are_told_apart(demo, tmp_path):
    from sixbit_jax import load
    from sixbit_jax.calibration import PolicyFile, save_policy

    model, _ = load(demo / "model-nvfp4")
    policies = []
    for number, name in enumerate(("a", os.fsdecode(b"\xff"))):
        (tmp_path / name).mkdir()
        policies.append(str(tmp_path / name / "policy.json"))
        bits = ("INT8", "NVFP4")[number]
        policy = PolicyFile.for_model(model, delta=0.1, low=bits, high=bits)
        save_policy(policy, policies[-1])
    out = tmp_path / "out"
    argv = ["compare", *policies, f"--model={demo / 'model-nvfp4'}"]
    argv += [f"--prompt-embeds={demo / 'prompts.safetensors'}", f"--out={out}"]
    assert cli.main([*argv, "--steps=1", "--quiet"]) == 0
    report = report_of(out)
    assert [r["method"] for r in report["records"]] == ["policy", "policy (2)"]
    assert len(set(report["files"])) == len(report["files"])
    assert {"traces_policy.npz", "traces_policy-2.npz"} <= set(report["files"])


def test_compare_of_embeddings_needs_a_model(tmp_path, capsys):
    argv = ["compare", "full", "w4a4", "--prompt-embeds=p", f"--out={tmp_path / 'o'}"]
    assert cli.main(argv) == cli.USER_ERROR
    assert "expected --model" in capsys.readouterr().err


def test_the_recommended_policy_belongs_to_the_bundled_checkpoint(tmp_path):
    from convert import convert
    from sixbit_jax.commands._configurations import configuration_for
    from sixbit_jax.commands._names import BUNDLED_CHECKPOINT, RECOMMENDED
    from sixbit_jax.commands._networks import load_network

    convert(BUNDLED_CHECKPOINT, tmp_path / "model", weights="nvfp4")
    network = load_network(tmp_path / "model")
    chosen = configuration_for(RECOMMENDED, plain=network, quantized=network, steps=50)
    assert chosen.name == "6-bit"
    assert chosen.policy.skips
    assert chosen.policy_file is not None
    assert chosen.policy_file.calibration
