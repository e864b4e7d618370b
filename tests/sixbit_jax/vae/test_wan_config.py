"""Configurations of the Wan autoencoder, published ones and bad ones."""

import pytest

from sixbit_jax.vae.wan_config import WanVAEConfig
from tests.golden import vae_wan_cases as cases

WAN_22 = {
    "_class_name": "AutoencoderKLWan",
    "_diffusers_version": "0.35.0.dev0",
    "attn_scales": [],
    "base_dim": 160,
    "clip_output": False,
    "decoder_base_dim": 256,
    "dim_mult": [1, 2, 4, 4],
    "dropout": 0.0,
    "in_channels": 12,
    "is_residual": True,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
    "num_res_blocks": 2,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "scale_factor_temporal": 4,
    "temperal_downsample": [False, True, True],
    "z_dim": 48,
}


def test_the_published_configurations_are_read():
    first = WanVAEConfig.from_dict({"_class_name": "AutoencoderKLWan"})
    assert (first.base_dim, first.decoder_dim, first.z_dim, first.patch) == (
        96,
        96,
        16,
        1,
    )
    assert first.latents_mean[0] == -0.7571
    assert first.latents_std[-1] == 1.916
    assert (first.latent_channels, first.spatial_compression_ratio) == (16, 8)
    second = WanVAEConfig.from_dict(WAN_22)
    assert (second.latent_channels, second.spatial_compression_ratio) == (48, 16)
    assert second.temporal_compression_ratio == 4
    assert (second.base_dim, second.decoder_dim, second.z_dim, second.patch) == (
        160,
        256,
        48,
        2,
    )


@pytest.mark.parametrize("name", cases.names())
def test_it_is_written_as_diffusers_writes_it(name):
    theirs = {k: v for k, v in cases.load(name).config.items() if k[0] != "_"}
    assert WanVAEConfig.from_dict(theirs).to_dict() == theirs


def test_unknown_keys_and_values_are_one_error():
    values = {"attn_scales": [0.5], "beta": 1, "dim_mult": 4, "gamma": None}
    with pytest.raises(ValueError) as error:
        WanVAEConfig.from_dict(values)
    for part in (
        "attn_scales: expected [], found [0.5]",
        "beta: not a field of a Wan VAE config",
        "gamma: not a field of a Wan VAE config",
        "dim_mult: expected a list of a whole number from 1 to 1024, found 4",
    ):
        assert part in str(error.value)


def test_numbers_that_do_not_fit_each_other_are_one_error():
    values = {"base_dim": 0, "z_dim": 4, "dim_mult": [1, 2], "patch_size": 2}
    with pytest.raises(ValueError) as error:
        WanVAEConfig.from_dict(values)
    for part in (
        "base_dim: expected a whole number from 1 to 65536, found 0",
        "temperal_downsample: expected 1 values, one less than dim_mult has, found 3",
        "latents_mean: expected z_dim (4) values, found 16",
        "latents_std: expected z_dim (4) values, found 16",
        "in_channels: expected 12, three colours of 2x2 pixels, found 3",
        "out_channels: expected 12",
        "scale_factor_spatial: expected 4, what the levels do, found 8",
    ):
        assert part in str(error.value)
    assert "scale_factor_temporal" not in str(error.value)


def test_shortcuts_need_whole_numbers_of_channels():
    values = WAN_22 | {"base_dim": 5, "dim_mult": [1, 3, 7, 4]}
    with pytest.raises(ValueError, match="encoder level 2: expected 15 channels times"):
        WanVAEConfig.from_dict(values)
