"""The diffusers checkpoint that training writes, and the pictures beside it."""

import json
import struct
import zlib

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from sixbit_jax.demo import export, images, model

SMALL = {"num_attention_heads": 1, "num_layers": 2, "patch_size": 16}


@pytest.fixture(scope="module")
def params():
    state = nnx.state(model.COGVIDEOX.new(0, SMALL))
    # Distinct values everywhere, so that a swapped pair of tensors is seen.
    leaves, structure = jax.tree.flatten(state)
    random = np.random.default_rng(0)
    filled = [random.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, filled)


@pytest.fixture(scope="module")
def written(tmp_path_factory, params):
    root = tmp_path_factory.mktemp("export") / "out" / "checkpoint"
    export.write_checkpoint(params, root, overrides=SMALL)
    return root


def test_shards_hold_every_tensor_once_and_the_index_finds_it(written):
    folder = written / "transformer"
    index = json.loads(
        (folder / "diffusion_pytorch_model.safetensors.index.json").read_text()
    )
    files = sorted(folder.glob("*.safetensors"))
    assert [file.name for file in files] == sorted(set(index["weight_map"].values()))
    held = {file.name: load_file(file) for file in files}
    names = {name: file for file, group in held.items() for name in group}
    assert names == index["weight_map"]
    sizes = [sum(a.nbytes for a in group.values()) for group in held.values()]
    assert sum(sizes) == index["metadata"]["total_size"]
    assert max(sizes) < 0.75 * sum(sizes)
    assert len(names) == 16 + 2 * 24


def test_tensors_have_diffusers_names_and_the_values_of_their_layer(written, params):
    tensors = {}
    for file in (written / "transformer").glob("*.safetensors"):
        tensors |= load_file(file)
    blocks = params["transformer_blocks"]
    pairs = {
        "transformer_blocks.1.attn1.to_out.0.weight": blocks["attn1"]["to_out"],
        "transformer_blocks.1.ff.net.0.proj.weight": blocks["ff"]["up"],
        "transformer_blocks.1.ff.net.2.weight": blocks["ff"]["down"],
        "transformer_blocks.1.norm1.linear.weight": blocks["norm1"]["linear"],
    }
    for name, ours in pairs.items():
        expected = np.asarray(ours["weight"].get_value())[1].astype(ml_dtypes.bfloat16)
        assert tensors[name].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(tensors[name], expected)
    assert tensors["patch_embed.proj.weight"].shape == (64, 3, 16, 16)


def test_configurations_are_those_of_the_model(written):
    config = json.loads((written / "transformer" / "config.json").read_text())
    assert config["_class_name"] == "CogVideoXTransformer3DModel"
    assert config["num_layers"] == 2
    scheduler = json.loads(
        (written / "scheduler" / "scheduler_config.json").read_text()
    )
    assert scheduler == model.scheduler_config()
    assert model.demo_scheduler().prediction_type == "v_prediction"


def test_nan_leaves_nothing_behind(tmp_path, params):
    broken = jax.tree.map(lambda x: x * np.nan, params)
    with pytest.raises(ValueError, match=r"proj_out\.weight"):
        export.write_checkpoint(broken, tmp_path / "checkpoint", overrides=SMALL)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_destination_is_left_alone(written, params):
    before = sorted(written.rglob("*"))
    with pytest.raises(ValueError, match="expected a new path"):
        export.write_checkpoint(params, written)
    assert sorted(written.rglob("*")) == before


def test_contact_sheet_puts_frames_side_by_side():
    videos = np.full((2, 3, 3, 4, 4), -1.0, np.float32)
    videos[1, 2, 0] = 5.0
    sheet = images.contact_sheet(videos, every=2, scale=1, gap=1)
    assert sheet.shape == (1 + 2 * 5, 1 + 2 * 5, 3)
    np.testing.assert_array_equal(sheet[8, 8], [255, 0, 0])
    np.testing.assert_array_equal(sheet[8, 3], [0, 0, 0])
    np.testing.assert_array_equal(sheet[5, 8], [128, 128, 128])


def test_png_holds_the_picture(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    images.write_png(tmp_path / "a.png", picture)
    content = (tmp_path / "a.png").read_bytes()
    assert struct.unpack(">II", content[16:24]) == (7, 5)
    start = content.index(b"IDAT")
    size = struct.unpack(">I", content[start - 4 : start])[0]
    rows = zlib.decompress(content[start + 4 : start + 4 + size])
    decoded = np.frombuffer(rows, np.uint8).reshape(5, 1 + 21)
    np.testing.assert_array_equal(decoded[:, 1:].reshape(5, 7, 3), picture)
    with pytest.raises(ValueError, match="uint8"):
        images.write_png(tmp_path / "b.png", picture / 255)
