"""CogVideoX's autoencoder against diffusers, and what it refuses."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert.vae_cogvideox import TABLE
from sixbit_jax.vae.causal_conv import METHODS
from sixbit_jax.vae.cogvideox import (
    AutoencoderKLCogVideoX,
    latents_for_model,
    latents_from_model,
)
from sixbit_jax.vae.cogvideox_config import CogVideoXVAEConfig
from sixbit_jax.vae.streaming import decode_stream, encode
from sixbit_jax.vae.tiling import Tiling
from tests.golden import vae_cases
from tests.sixbit_jax.vae.small import golden_vae, joined, relative_l2

FOLDER = "vae_cogvideox"
CHUNKED = "three_levels_f5_3x4_f17_14x11"


def load(name):
    case = vae_cases.load(FOLDER, name)
    vae = golden_vae(case, AutoencoderKLCogVideoX, TABLE)
    tiling = Tiling.cogvideox(vae.config) if case.tiled else None
    return case, vae, tiling


@pytest.mark.parametrize("name", vae_cases.names(FOLDER))
def test_float32_decoding_equals_diffusers(name):
    case, vae, tiling = load(name)
    frames = decode_stream(vae, case.latents(), dtype=jnp.float32, tiling=tiling)
    assert relative_l2(joined(frames), case.decoded) < 1e-5


@pytest.mark.parametrize("name", vae_cases.names(FOLDER))
def test_float32_encoding_equals_diffusers(name):
    case, vae, tiling = load(name)
    moments = encode(vae, case.video(), tiling=tiling)
    assert relative_l2(moments.mean, case.mean) < 1e-5
    assert relative_l2(moments.logvar, case.logvar) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_convolution_gives_the_same_frames(method):
    case, vae, _ = load(CHUNKED)
    frames = decode_stream(vae, case.latents(), dtype=jnp.float32, method=method)
    assert relative_l2(joined(frames), case.decoded) < 1e-5


def test_bfloat16_is_close_to_float32():
    case, vae, _ = load(CHUNKED)
    frames = joined(decode_stream(vae, case.latents(), dtype=jnp.bfloat16))
    assert frames.dtype == jnp.bfloat16
    assert relative_l2(frames.astype(np.float32), case.decoded) < 2e-2


def test_chunk_lengths_are_those_of_diffusers():
    vae = AutoencoderKLCogVideoX
    assert vae.decode_lengths(13) == (3, 2, 2, 2, 2, 2)
    assert vae.decode_lengths(12) == (2, 2, 2, 2, 2, 2)
    assert vae.decode_lengths(1) == (1,)
    assert vae.encode_lengths(49) == (9, 8, 8, 8, 8, 8)
    assert vae.encode_lengths(5) == (5,)
    assert vae.encode_lengths(12) == (12,)
    with pytest.raises(ValueError, match="expected at least 1, found 0"):
        vae.decode_lengths(0)


def test_parameter_count_and_stored_shapes_of_the_published_model():
    state = nnx.eval_shape(
        lambda: nnx.state(
            AutoencoderKLCogVideoX(CogVideoXVAEConfig(), rngs=nnx.Rngs(0))
        )
    )
    flat = {
        ".".join(map(str, path)): leaf.get_value().shape
        for path, leaf in nnx.to_flat_state(state)
    }
    assert sum(int(np.prod(shape)) for shape in flat.values()) == 215_583_907
    assert flat["decoder.conv_in.weight"] == (512, 16, 3, 3, 3)
    assert flat["decoder.up_blocks.2.sampler.conv.weight"] == (256, 256, 3, 3)


def test_scaling_is_undone_and_inverted_for_pictures_where_the_config_says_so():
    plain = CogVideoXVAEConfig(scaling_factor=0.7)
    inverted = CogVideoXVAEConfig(scaling_factor=0.7, invert_scale_latents=True)
    z = jnp.arange(4.0)
    np.testing.assert_allclose(latents_for_model(plain, z), 0.7 * z)
    np.testing.assert_allclose(latents_from_model(plain, 0.7 * z), z, rtol=1e-6)
    np.testing.assert_allclose(latents_for_model(plain, z, picture=True), 0.7 * z)
    np.testing.assert_allclose(latents_for_model(inverted, z, picture=True), z / 0.7)
    np.testing.assert_allclose(latents_for_model(inverted, z), 0.7 * z)


def test_a_config_survives_the_round_trip():
    case = vae_cases.load(FOLDER, CHUNKED)
    config = CogVideoXVAEConfig.from_dict(case.config)
    assert CogVideoXVAEConfig.from_dict(config.to_dict()) == config
    assert config.spatial_compression_ratio == 4
    assert config.norm_eps == 1e-4


def test_all_problems_of_a_config_are_in_one_message():
    values = {
        "use_quant_conv": True,
        "act_fn": "gelu",
        "colour": 1,
        "down_block_types": ["DownBlock"] * 3,
    }
    with pytest.raises(ValueError) as found:
        CogVideoXVAEConfig.from_dict(values)
    text = str(found.value)
    assert "use_quant_conv: expected False, found True" in text
    assert "act_fn: expected 'silu', found 'gelu'" in text
    assert "colour: not a field of a CogVideoX VAE config" in text
    assert "down_block_types: expected a list of 4 values" in text
    assert "'CogVideoXDownBlock3D', found ['DownBlock'" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": (8, 30)}, r"multiples of norm_num_groups \(32\)"),
        ({"temporal_compression_ratio": 3}, "expected a power of two, found 3"),
        ({"temporal_compression_ratio": 16}, "expected at most 8 with 4 levels"),
        (
            {"scaling_factor": 0.0},
            "expected a number above 0 and at most 1e.06, found 0.0",
        ),
        (
            {"latent_channels": 0},
            "latent_channels: expected a whole number from 1 to 4096, found 0",
        ),
        ({"block_out_channels": ()}, "expected at least one level"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CogVideoXVAEConfig(**changes)
