"""Wan under the key names of its original repository."""

import json
import re

import numpy as np
import pytest
from flax import nnx

from convert import convert
from convert.errors import ConversionError
from convert.original_wan import renamed
from convert.reader import open_source
from convert.safetensors_file import write_file
from sixbit_jax.checkpoint import load
from sixbit_jax.models.wan.config import WanConfig
from tests.convert.checkpoints import write_checkpoint
from tests.convert.packed_files import pack_checkpoint
from tests.convert.torch_files import write_state_dict
from tests.golden import wan_cases

NAMES = json.loads((wan_cases.FOLDER / "original_names.json").read_text())
CASE = "t2v_128_f2_8x6_t7_rows"


def _original(weights, prefix=""):
    """The weights under the names from which diffusers makes these."""
    back = {theirs: original for original, theirs in NAMES.items()}
    found = {}
    for key, value in weights.items():
        layer = re.match(r"blocks\.(\d+)\.", key)
        name = back[key if layer is None else key.replace(layer[0], "blocks.0.", 1)]
        if layer is not None:
            name = name.replace("blocks.0.", layer[0], 1)
        found[prefix + name] = value
    return found


@pytest.fixture(scope="module")
def case():
    return wan_cases.load(CASE)


def _config(case):
    # No shape tells the limit of the positions: that of all published networks.
    return WanConfig.from_dict(dict(case.config) | {"rope_max_seq_len": 1024})


def test_names_are_those_that_diffusers_gives():
    assert renamed(dict.fromkeys(NAMES)).keys() == set(NAMES.values())


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_the_original_file_is_the_same_network(tmp_path, case, kind):
    write_checkpoint(tmp_path / "diffusers", case.config, case.weights())
    folder = tmp_path / "original"
    folder.mkdir()
    weights = _original(case.weights())
    if kind == "pth":
        write_state_dict(folder / "model.pth", weights)
    else:
        write_file(folder / "model.safetensors", weights)
        # What the original repository has there.
        (folder / "config.json").write_text('{"_class_name": "WanModel", "dim": 128}')
    source = open_source(folder)
    assert WanConfig.from_dict(source.config) == _config(case)
    for name in ("diffusers", "original"):
        convert(tmp_path / name, tmp_path / f"ours-{name}")
    ours, theirs = (
        nnx.to_flat_state(nnx.state(load(tmp_path / f"ours-{name}")[0]))
        for name in ("diffusers", "original")
    )
    for (path, one), (_, two) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.get_value(), two.get_value(), str(path))


def test_packed_weights_under_original_names(tmp_path, case):
    weights = _original(case.weights(), prefix="model.diffusion_model.")
    tensors, decoded = pack_checkpoint(weights, "comfyui", keep=("embedding",))
    assert len(decoded) > 10
    write_file(tmp_path / "model.safetensors", tensors)
    source = open_source(tmp_path)
    assert source.packed.dialect == "comfyui"
    assert WanConfig.from_dict(source.config) == _config(case)
    original = "model.diffusion_model.blocks.0.ffn.0.weight"
    found = source.tensors["blocks.0.ffn.net.0.proj.weight"].read()
    np.testing.assert_array_equal(found, decoded[original])
    report = convert(tmp_path / "model.safetensors", tmp_path / "ours")
    assert report.keys_quantized == len(decoded)


def test_other_kinds_of_wan_are_named(tmp_path, case):
    weights = _original(case.weights())
    weights["vace_blocks.0.before_proj.weight"] = np.zeros(2, np.float32)
    write_file(tmp_path / "a.safetensors", weights)
    with pytest.raises(ConversionError, match=r"found Wan VACE \(vace_blocks"):
        open_source(tmp_path)
    del weights["vace_blocks.0.before_proj.weight"]
    weights["blocks.0.wonder.weight"] = np.zeros(2, np.float32)
    write_file(tmp_path / "a.safetensors", weights)
    with pytest.raises(ConversionError, match=r"another kind of Wan.*\n.*wonder"):
        open_source(tmp_path)
    (tmp_path / "a.safetensors").unlink()
    del weights["blocks.0.wonder.weight"], weights["head.head.weight"]
    write_file(tmp_path / "a.safetensors", weights)
    with pytest.raises(ConversionError, match=r"incomplete: .* proj_out\.weight"):
        open_source(tmp_path)


def test_a_tensor_under_two_names_is_refused(tmp_path, case):
    key = "blocks.0.self_attn.q.weight"
    weights = _original(case.weights())
    weights[f"model.diffusion_model.{key}"] = weights[key]
    write_file(tmp_path / "a.safetensors", weights)
    with pytest.raises(ConversionError, match=f"both are {key}"):
        open_source(tmp_path)


@pytest.mark.parametrize("layer", ["9" * 5000, "10000", "١"])
def test_layers_have_plain_numbers(layer):
    with pytest.raises(ConversionError, match="found") as caught:
        renamed({f"blocks.{layer}.self_attn.q.weight": None})
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("name", ["patch_embedding.weight", "head.head.weight"])
def test_tensors_without_the_axes_of_their_kind_are_refused(tmp_path, case, name):
    weights = _original(case.weights())
    weights[name] = np.zeros((), np.float32)
    write_file(tmp_path / "a.safetensors", weights)
    with pytest.raises(ConversionError, match=r"expected a convolution of five axes"):
        open_source(tmp_path)
