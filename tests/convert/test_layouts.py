"""Roots of Wan's authors, networks joined afterwards, and files with more in them."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import convert
from convert import ConversionError, convert_pair
from convert.command import main as convert_main
from convert.pair import is_pair
from sixbit_jax.checkpoint import CheckpointError, read_header
from sixbit_jax.checkpoint.pair import join_pair, load_pair, read_boundary
from sixbit_jax.cli import main
from tests.convert.checkpoints import converted
from tests.convert.file_kinds import (
    KINDS,
    ORIGINAL,
    WEIGHTS,
    diffusers,
    single,
)
from tests.convert.lora_files import original
from tests.convert.torch_files import whole, write_torch_file
from tests.golden import wan_cases

I2V = "i2v_22_f3_6x10_t5_rows"


def _authors_root(folder, weights):
    """As Wan2.2's repository has it: one network twice, the second one doubled."""
    for name, factor in (("high_noise_model", 1), ("low_noise_model", 2)):
        (folder / name).mkdir(parents=True)
        tensors = {original(k): v * np.float32(factor) for k, v in weights.items()}
        save_file(tensors, folder / name / "diffusion_pytorch_model.safetensors")
        config = {"_class_name": "WanModel", "dim": 256, "model_type": "t2v"}
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_the_root_of_wans_authors_is_a_pair(tmp_path, kind):
    case = wan_cases.load(I2V)
    weights = dict(WEIGHTS if kind == "t2v" else case.weights())
    name = "patch_embedding.weight"
    if kind == "i2v":
        # The channels by which published networks are known.
        weights[name] = np.resize(weights[name], (len(weights[name]), 36, 1, 2, 2))
    root = _authors_root(tmp_path / "root", weights)
    assert is_pair(root)
    with pytest.raises(ConversionError, match="found high_noise_model/ and low_noise"):
        convert.convert(root, tmp_path / "no")
    assert convert_main([str(root), str(tmp_path / "out")]) == 0
    assert read_boundary(tmp_path / "out") == (0.875 if kind == "t2v" else 0.9)
    high, low = (converted(tmp_path / "out" / f"{n}_noise") for n in ("high", "low"))
    for key, value in weights.items():
        np.testing.assert_array_equal(high[key], value)
        np.testing.assert_array_equal(low[key], value * 2)


def test_two_converted_networks_are_joined(tmp_path, capsys):
    for name, factor in (("high", 1), ("low", 2)):
        (tmp_path / "src").mkdir(exist_ok=True)
        tensors = {k: v * np.float32(factor) for k, v in ORIGINAL.items()}
        file = single(tmp_path / "src", tensors, name)
        convert.convert(file, tmp_path / name, weights="nvfp4")
    folders = [str(tmp_path / name) for name in ("high", "low", "out")]
    assert main(["pair", *folders]) == 0
    assert "a pair that changes at 0.875" in capsys.readouterr().out
    high, low, _ = load_pair(tmp_path / "out")
    assert low.boundary == 0.875
    first, second = (
        np.asarray(network.blocks.attn1.to_q.weight.get_value().dequantize())
        for network in (high, low.model)
    )
    np.testing.assert_allclose(second, 2 * first, rtol=1e-5)
    assert main(["pair", *folders]) == 2
    assert "expected a new path" in capsys.readouterr().err
    assert main(["pair", *folders[:2], folders[2] + "2", "--boundary", "0.5"]) == 0
    assert read_boundary(tmp_path / "out2") == 0.5
    convert.convert(tmp_path / "src" / "low.safetensors", tmp_path / "plain")
    with pytest.raises(CheckpointError, match="not the other half of a pair"):
        join_pair(tmp_path / "high", tmp_path / "plain", tmp_path / "no")
    item = next((tmp_path / "low" / "blocks.0").rglob("d/*"))
    item.write_bytes(item.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        join_pair(tmp_path / "high", tmp_path / "low", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_pair_of_diffusers_without_a_boundary_has_the_published_one(tmp_path):
    for folder in ("transformer", "transformer_2"):
        (tmp_path / "root").mkdir(exist_ok=True)
        diffusers(tmp_path / "root" / folder, WEIGHTS)
    convert_pair(tmp_path / "root", tmp_path / "out")
    assert read_boundary(tmp_path / "out") == 0.875


def test_what_an_all_in_one_file_has_besides_is_named_and_recorded(tmp_path):
    source, _ = KINDS["all-in-one file"].write(tmp_path)
    report = convert.convert(source, tmp_path / "out")
    left = "not taken, of other components: VAE (2 tensors), text encoder (1 tensors)"
    assert left in str(report)
    recorded = read_header(tmp_path / "out").source["left"]["others"]
    assert recorded == {"VAE": 2, "text encoder": 1}


def test_a_network_behind_transformer_beside_others(tmp_path):
    tensors = {f"transformer.{k}": v for k, v in ORIGINAL.items()}
    tensors["vae.conv.weight"] = np.ones(2, np.float32)
    convert.convert(single(tmp_path, tensors), tmp_path / "out")
    for key, value in converted(tmp_path / "out").items():
        np.testing.assert_array_equal(value, WEIGHTS[key])


def _many(file, count=2, **more):
    arrays = {k: whole(v, f"{k}") for k, v in ORIGINAL.items()}
    return write_torch_file(file, {"ema": arrays, **more})


def test_which_state_dict_was_taken_is_recorded(tmp_path, capsys):
    other = {"blocks.0.self_attn.q.weight": whole(np.ones(2, np.float32), "other")}
    optimizer = {"state": {0: {"exp_avg": whole(np.ones(2, np.float32), "o")}}}
    file = _many(tmp_path / "a.pt", model=other, optimizer=optimizer, step=7)
    argv = [str(file), str(tmp_path / "out")]
    assert convert_main(argv) == 1
    message = capsys.readouterr().err
    assert "found several; name one with --state-dict" in message
    assert "ema: 69 tensors, such as" in message
    assert "model: 1 tensors" in message
    assert "optimizer" not in message
    assert convert_main([*argv, "--state-dict", "critic"]) == 1
    assert "expected the state dict critic" in capsys.readouterr().err
    assert convert_main([*argv, "--state-dict", "ema"]) == 0
    assert "a.pt: took ema, left model (1)" in capsys.readouterr().out
    found = read_header(tmp_path / "out").source["left"]["state_dicts"]
    assert found == {"a.pt": {"taken": "ema", "left": {"model": 1}}}


def test_a_tensor_beside_the_only_state_dict_is_no_state_dict(tmp_path):
    file = _many(tmp_path / "a.pt", rng_state=whole(np.ones(3, np.uint8), "rng"))
    convert.convert(file, tmp_path / "out")
    for key, value in converted(tmp_path / "out").items():
        np.testing.assert_array_equal(value, WEIGHTS[key])


def test_other_files_have_one_state_dict(tmp_path):
    file = single(tmp_path, ORIGINAL)
    with pytest.raises(ConversionError, match=r"--state-dict ema: expected a file of"):
        convert.convert(file, tmp_path / "out", state_dict="ema")
