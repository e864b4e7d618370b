"""Meshes: how devices are shared out, and what of a mesh is refused."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sixbit_jax
from sixbit_jax.commands import _mesh
from sixbit_jax.meshes import axes_of, default_sizes, make_mesh
from tests.sixbit_jax.models.small import small_model


@pytest.mark.parametrize(
    ("devices", "heads", "guided", "expected"),
    [
        (1, 48, True, {"guidance": 1, "sequence": 1}),
        (2, 48, True, {"guidance": 2, "sequence": 1}),
        (8, 48, True, {"guidance": 2, "sequence": 4}),
        (8, 24, False, {"guidance": 1, "sequence": 8}),
        (3, 30, True, {"guidance": 1, "sequence": 3}),
    ],
)
def test_guidance_comes_first_and_then_tokens(devices, heads, guided, expected):
    assert default_sizes(devices, heads, guided=guided) == expected


def test_numbers_of_devices_that_would_do_are_named():
    with pytest.raises(ValueError, match=r"1, 2, 3, 4, 6, 8, 12, 24 .* found 16"):
        default_sizes(16, 12, guided=True)


def test_neighbours_are_along_the_tokens():
    mesh = make_mesh({"sequence": 2, "guidance": 2})
    assert mesh.axis_names == ("guidance", "sequence")
    assert [device.id for device in mesh.devices[0]] == [0, 1]


def test_all_that_is_wrong_with_sizes_is_in_one_message():
    with pytest.raises(ValueError, match="found 'data'") as raised:
        make_mesh({"data": 2, "sequence": 0})
    assert "sequence: expected at least 1, found 0" in str(raised.value)
    with pytest.raises(ValueError, match="expected 16 devices, found 8"):
        make_mesh({"sequence": 16})


@pytest.mark.parametrize(
    ("sizes", "guided", "tokens", "branches"),
    [
        ({"fsdp": 2}, True, (), ("fsdp",)),
        ({"fsdp": 2}, False, ("fsdp",), ()),
        ({"fsdp": 4}, True, ("fsdp",), ()),
        ({"guidance": 2, "fsdp": 2}, True, ("fsdp",), ("guidance",)),
        ({"sequence": 2, "fsdp": 2}, True, ("sequence",), ("fsdp",)),
        ({"sequence": 1, "guidance": 2}, True, (), ("guidance",)),
    ],
)
def test_devices_that_share_weights_share_the_work(sizes, guided, tokens, branches):
    axes = axes_of(make_mesh(sizes), guided=guided, batched=False)
    assert (axes.tokens, axes.branches) == (tokens, branches)
    assert axes.weights == (("fsdp",) if "fsdp" in sizes else ())


def test_the_command_line_says_both_forms():
    parser = argparse.ArgumentParser()
    _mesh.add_arguments(parser)
    args = parser.parse_args(["--mesh", "guidance=2,sequence=4"])
    assert dict(_mesh.mesh_of(args, 48, guided=True).shape) == {
        "guidance": 2,
        "sequence": 4,
    }
    args = parser.parse_args(["--devices", "4"])
    assert dict(_mesh.mesh_of(args, 48, guided=False).shape) == {
        "guidance": 1,
        "sequence": 4,
    }
    assert _mesh.mesh_of(parser.parse_args([]), 48, guided=True) is None
    with pytest.raises(argparse.ArgumentTypeError, match="found 'guidance:2'"):
        _mesh.sizes_of("guidance:2")


def test_a_checkpoint_goes_straight_to_its_shards(tmp_path):
    model = sixbit_jax.quantize(small_model(num_layers=2, num_attention_heads=4))
    sixbit_jax.save(model, tmp_path / "model")
    mesh = make_mesh({"guidance": 2, "fsdp": 4})
    loaded, _ = sixbit_jax.load(tmp_path / "model", mesh=mesh)
    ours = loaded.transformer_blocks.ff.up.weight.get_value().codes
    theirs = model.transformer_blocks.ff.up.weight.get_value().codes
    assert {shard.data.shape for shard in ours.addressable_shards} == {(2, 256, 128)}
    np.testing.assert_array_equal(ours, theirs)
    bias = loaded.proj_out.bias.get_value()
    assert len(bias.sharding.device_set) == 8
    assert bias.is_fully_replicated


def test_a_checkpoint_is_cast_on_its_way_to_a_mesh(tmp_path):
    sixbit_jax.save(small_model(num_layers=1), tmp_path / "model")
    mesh = make_mesh({"fsdp": 2})
    loaded, _ = sixbit_jax.load(tmp_path / "model", dtype=jnp.bfloat16, mesh=mesh)
    assert loaded.proj_out.weight.get_value().dtype == jnp.bfloat16
    assert loaded.transformer_blocks.ff.up.weight.get_value().dtype == jnp.bfloat16


def test_a_mesh_of_other_axes_is_refused_when_loading(tmp_path):
    sixbit_jax.save(small_model(num_layers=1), tmp_path / "model")
    with pytest.raises(ValueError, match=r"expected axes among .* found 'data'"):
        sixbit_jax.load(tmp_path / "model", mesh=jax.make_mesh((2,), ("data",)))
