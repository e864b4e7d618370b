"""The Wan autoencoder under the key names of its authors."""

import json
from typing import NamedTuple

import pytest

from convert.errors import ConversionError
from convert.original_wan_vae import config_of, is_original, renamed
from convert.vae_wan import TABLE
from sixbit_jax.vae.wan_config import WanVAEConfig
from tests.golden import vae_wan_cases
from tests.sixbit_jax.vae.test_wan_config import WAN_22
from tests.sixbit_jax.vae.wan_models import abstract, flat

NAMES = json.loads((vae_wan_cases.FOLDER.parent / "vae_wan_names.json").read_text())
BLOCK = [f"residual.{i}.gamma" for i in (0, 3)]
BLOCK += [f"residual.{i}.{leaf}" for i in (2, 6) for leaf in ("weight", "bias")]


class Tensor(NamedTuple):
    shape: tuple[int, ...]


def _published(values) -> dict[str, Tensor]:
    """Shapes of a published network, by diffusers' names."""
    found = {}
    for path, leaf in flat(abstract(WanVAEConfig.from_dict(values))).items():
        key, rule = TABLE.source_of(path)
        shape = rule.transform.source_shape(tuple(leaf.get_value().shape))
        found[key] = Tensor(shape)
    return found


def _names_22() -> list[str]:
    """Keys of Wan 2.2's file, as its authors nest the modules."""
    leaves = ("weight", "bias")
    names = [f"conv{i}.{leaf}" for i in (1, 2) for leaf in leaves]
    for half, row, blocks, wider, temporal in (
        ("encoder", "downsamples", 2, {1, 2}, {1, 2}),
        ("decoder", "upsamples", 3, {2, 3}, {0, 1}),
    ):
        names += [f"{half}.{x}.{leaf}" for x in ("conv1", "head.2") for leaf in leaves]
        names += [f"{half}.head.0.gamma", f"{half}.middle.1.norm.gamma"]
        linears = ("to_qkv", "proj")
        names += [f"{half}.middle.1.{x}.{leaf}" for x in linears for leaf in leaves]
        names += [f"{half}.middle.{i}.{x}" for i in (0, 2) for x in BLOCK]
        for level in range(4):
            inside = [f"{i}.{x}" for i in range(blocks) for x in BLOCK]
            if level in wider:
                inside += [f"0.shortcut.{leaf}" for leaf in leaves]
            if level < 3:
                inside += [f"{blocks}.resample.1.{leaf}" for leaf in leaves]
            if level in temporal:
                inside += [f"{blocks}.time_conv.{leaf}" for leaf in leaves]
            names += [f"{half}.{row}.{level}.{row}.{x}" for x in inside]
    return names


def test_names_of_wan_21_are_those_that_diffusers_gives():
    tensors = {key: Tensor((i,)) for i, key in enumerate(NAMES)}
    assert is_original(tensors)
    expected = {NAMES[key]: tensor for key, tensor in tensors.items()}
    assert renamed(tensors) == expected
    assert expected.keys() == _published({}).keys()
    assert not is_original(expected)


def test_names_of_wan_22_are_those_of_its_diffusers_network():
    names = _names_22()
    assert is_original(dict.fromkeys(names))
    found = renamed(dict.fromkeys(names))
    assert len(found) == len(names)
    assert found.keys() == _published(WAN_22).keys()


@pytest.mark.parametrize("values", [{}, WAN_22])
def test_the_configuration_is_read_off_the_shapes(values):
    found = WanVAEConfig.from_dict(config_of(_published(values))).to_dict()
    expected = WanVAEConfig.from_dict(values).to_dict()
    expected["decoder_base_dim"] = expected["decoder_base_dim"] or 96
    if values:
        assert found.pop("latents_mean")[:2] == [-0.2289, -0.0052]
        assert found.pop("latents_std")[-1] == 0.7744
        del expected["latents_mean"], expected["latents_std"]
    assert found == expected


def test_other_keys_and_networks_are_named():
    tensors = {key: Tensor((1,)) for key in [*NAMES, "loss.logvar"]}
    with pytest.raises(ConversionError, match=r"found others:\n  loss\.logvar"):
        renamed(tensors)
    with pytest.raises(ConversionError, match=r"incomplete: .* decoder\.conv_out"):
        config_of({"encoder.conv_in.weight": Tensor((1,))})
    small = _published({})
    small["post_quant_conv.weight"] = Tensor((8, 8, 1, 1, 1))
    with pytest.raises(ConversionError, match=r"16 channels .* found 8"):
        config_of(small)
