"""Both networks of a root with two, in one directory, and back into memory."""

import json
import os

import numpy as np
import pytest
from flax import nnx

import sixbit_jax
from convert import convert, convert_pair
from convert.command import main
from convert.errors import ConversionError
from convert.reader import open_source
from sixbit_jax.checkpoint import CheckpointError
from sixbit_jax.checkpoint.pair import NETWORKS
from tests.convert.checkpoints import write_checkpoint
from tests.golden import wan_cases

CASE = "t2v_f1_6x4_t3_rows"


def _root(path, index=None):
    case = wan_cases.load(CASE)
    for number, folder in enumerate(("transformer", "transformer_2")):
        weights = {key: value + number for key, value in case.weights().items()}
        write_checkpoint(path / folder, case.config, weights, shards=2)
    if index is not None:
        (path / "model_index.json").write_text(json.dumps(index))
    return path


def test_both_networks_are_converted_and_loaded(tmp_path):
    root = _root(tmp_path / "root", {"boundary_ratio": 0.9})
    reports = convert_pair(root, tmp_path / "pair", weights="nvfp4", rotation=0)
    assert [report.destination.name for report in reports] == list(NETWORKS)
    high, low, header = sixbit_jax.load_pair(tmp_path / "pair", guidance_scale=3.5)
    assert (low.boundary, low.guidance_scale) == (0.9, 3.5)
    assert header.model_class == "WanTransformer3DModel"
    case = wan_cases.load(CASE)
    expected = case.weights()["proj_out.bias"]
    np.testing.assert_allclose(high.proj_out.bias[...], expected, rtol=1e-6)
    np.testing.assert_allclose(low.model.proj_out.bias[...], expected + 1, rtol=1e-6)
    convert(root / "transformer_2", tmp_path / "alone", weights="nvfp4", rotation=0)
    alone = nnx.to_flat_state(nnx.state(sixbit_jax.load(tmp_path / "alone")[0]))
    for (_, one), (_, two) in zip(
        alone, nnx.to_flat_state(nnx.state(low.model)), strict=True
    ):
        for name in ("codes", "block_scales"):
            if hasattr(one.get_value(), name):
                found = getattr(two.get_value(), name)
                np.testing.assert_array_equal(getattr(one.get_value(), name), found)


def test_the_command_line_takes_the_root(tmp_path, capsys):
    root = _root(tmp_path / "root")
    assert main([str(root), str(tmp_path / "pair")]) == 0
    assert capsys.readouterr().out.count("WanTransformer3DModel") == 2
    assert (
        json.loads((tmp_path / "pair" / "pair.json").read_text())["boundary"] == 0.875
    )
    with pytest.raises(ConversionError, match="name one of them, or convert both"):
        convert(root, tmp_path / "one")


def test_the_way_back_is_a_root_of_two_networks(tmp_path, capsys):
    root = _root(tmp_path / "root", {"boundary_ratio": 0.9})
    convert_pair(root, tmp_path / "pair")
    back = tmp_path / "back"
    assert main([str(tmp_path / "pair"), str(back), "--to-diffusers"]) == 0
    assert sorted(p.name for p in back.iterdir()) == [
        "model_index.json",
        "transformer",
        "transformer_2",
    ]
    index = json.loads((back / "model_index.json").read_text())
    assert (index["_class_name"], index["boundary_ratio"]) == ("WanPipeline", 0.9)
    for folder in ("transformer", "transformer_2"):
        before, after = (open_source(r / folder).tensors for r in (root, back))
        assert before.keys() == after.keys()
        for key, tensor in before.items():
            assert after[key].read().tobytes() == tensor.read().tobytes()
    convert_pair(back, tmp_path / "again")
    assert sixbit_jax.load_pair(tmp_path / "again")[1].boundary == 0.9


def test_a_way_back_that_fails_leaves_nothing_behind(tmp_path, capsys):
    convert_pair(_root(tmp_path / "root"), tmp_path / "pair")
    (tmp_path / "pair" / "low_noise" / "sixbit.json").unlink()
    argv = [str(tmp_path / "pair"), str(tmp_path / "back"), "--to-diffusers"]
    assert main(argv) == 1
    assert "low_noise" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pair", "root"]


def test_a_failure_leaves_nothing_behind(tmp_path):
    root = _root(tmp_path / "root", {"boundary_ratio": 900})
    with pytest.raises(
        ConversionError, match="boundary_ratio: expected a number from 0 to 1"
    ):
        convert_pair(root, tmp_path / "pair")
    (root / "model_index.json").unlink()
    next((root / "transformer_2").glob("*-00002-of-*.safetensors")).unlink()
    with pytest.raises(ConversionError, match="no such file"):
        convert_pair(root, tmp_path / "pair")
    assert not (tmp_path / "pair").exists()
    with pytest.raises(
        ConversionError, match=r"expected transformer/ and transformer_2"
    ):
        convert_pair(root / "transformer", tmp_path / "pair")
    with pytest.raises(CheckpointError, match=r"expected pair\.json of a pair"):
        sixbit_jax.load_pair(root)


@pytest.mark.parametrize("found", ["0.9", True, -0.1, [0.9], 10**30])
def test_a_boundary_that_is_no_share_is_refused_on_both_sides(tmp_path, found):
    root = _root(tmp_path / "root", {"boundary_ratio": found})
    with pytest.raises(ConversionError, match="boundary_ratio: expected a number"):
        convert_pair(root, tmp_path / "pair")
    (tmp_path / "pair").mkdir()
    text = json.dumps({"boundary": found, "networks": list(NETWORKS)})
    (tmp_path / "pair" / "pair.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"pair.json: .*\n *boundary: expected"):
        sixbit_jax.load_pair(tmp_path / "pair")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"networks": list(NETWORKS)}, "boundary: expected a value, found none"),
        ({"boundary": 0.9}, "networks: expected a value, found none"),
        ({"boundary": 0.9, "networks": ["a", "b"]}, "networks: expected a list of 2"),
        ({"boundary": 0.9, "networks": list(NETWORKS), "wings": 1}, "wings: not a"),
        ([], "expected a JSON object, found a list"),
    ],
)
def test_a_description_of_a_pair_says_exactly_what_it_must(tmp_path, values, message):
    (tmp_path / "pair.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        sixbit_jax.load_pair(tmp_path)


@pytest.mark.parametrize("found", [float("nan"), 10**400])
def test_a_boundary_that_is_no_json_is_refused(tmp_path, found):
    root = _root(tmp_path / "root", {"boundary_ratio": found})
    with pytest.raises(ConversionError, match=r"model_index.json: expected a JSON"):
        convert_pair(root, tmp_path / "pair")


def test_a_model_index_that_is_no_file_is_refused_at_once(tmp_path):
    root = _root(tmp_path / "root", {})
    (root / "model_index.json").unlink()
    os.mkfifo(root / "model_index.json")
    with pytest.raises(ConversionError, match="regular file, found a FIFO"):
        convert_pair(root, tmp_path / "pair")
    assert not (tmp_path / "pair").exists()
