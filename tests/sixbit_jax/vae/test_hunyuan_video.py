"""HunyuanVideo's autoencoder against diffusers, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert.vae_hunyuan_video import TABLE
from sixbit_jax.vae import hunyuan_video, streaming
from sixbit_jax.vae.hunyuan_video import (
    AutoencoderKLHunyuanVideo,
    frame_causal_attention,
    latents_for_model,
    latents_from_model,
)
from sixbit_jax.vae.hunyuan_video_config import HunyuanVideoVAEConfig
from sixbit_jax.vae.streaming import decode_stream, encode
from sixbit_jax.vae.tiling import Tiling
from tests.golden import vae_cases
from tests.sixbit_jax.vae.small import golden_vae, joined, relative_l2

FOLDER = "vae_hunyuan_video"
WINDOWS = "no_attention_f7_2x2_f25_6x4"


def load(name):
    case = vae_cases.load(FOLDER, name)
    vae = golden_vae(case, AutoencoderKLHunyuanVideo, TABLE)
    return case, vae, Tiling(16, 16, 12, 12) if case.tiled else None


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


@pytest.mark.parametrize("name", vae_cases.names(FOLDER))
def test_frames_one_by_one_are_the_same_video(name):
    case, vae, tiling = load(name)
    options = {"dtype": jnp.float32, "tiling": tiling}
    groups = decode_stream(vae, case.latents(), group_bytes=1, **options)
    assert relative_l2(joined(groups), case.decoded) < 1e-5


def test_frames_come_window_by_window():
    case, vae, _ = load(WINDOWS)
    chunks = decode_stream(vae, case.latents(), output="uint8")
    shapes = [(chunk.shape[1], chunk.dtype) for chunk in chunks]
    assert shapes == [(13, np.uint8), (12, np.uint8)]


def test_windows_keep_nothing():
    graph, parameters = nnx.split(
        nnx.eval_shape(
            lambda: AutoencoderKLHunyuanVideo(HunyuanVideoVAEConfig(), rngs=nnx.Rngs(0))
        )
    )
    frames, state = jax.eval_shape(
        lambda parameters, z: streaming._step(
            parameters,
            None,
            z,
            graph=graph,
            decode=True,
            method="stacked",
            dtype=jnp.dtype("bfloat16"),
        ),
        parameters,
        jax.ShapeDtypeStruct((1, 5, 16, 4, 4), jnp.bfloat16),
    )
    assert frames.shape == (1, 17, 3, 32, 32)
    assert state == ()


@pytest.mark.parametrize("rows", [4, 7, 1024])
def test_attention_sees_no_later_frame(rows, monkeypatch):
    monkeypatch.setattr(hunyuan_video, "_QUERY_ROWS", rows)
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 3, 7, 8))
    found = frame_causal_attention(query, key, value)
    flat = (np.asarray(x, np.float64).reshape(2, 21, 8) for x in (query, key, value))
    q, k, v = flat
    frame = np.arange(21) // 7
    scores = np.where(frame <= frame[:, None], q @ k.mT / np.sqrt(8), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ v
    assert relative_l2(found, expected.reshape(found.shape)) < 1e-6


def test_parameter_count_of_the_published_model():
    state = nnx.eval_shape(
        lambda: nnx.state(
            AutoencoderKLHunyuanVideo(HunyuanVideoVAEConfig(), rngs=nnx.Rngs(0))
        )
    )
    shapes = [leaf.get_value().shape for _, leaf in nnx.to_flat_state(state)]
    assert sum(int(np.prod(shape)) for shape in shapes) == 246_478_803


def test_levels_change_size_as_published():
    config = HunyuanVideoVAEConfig()
    assert [config.factors(i) for i in range(4)] == [(1, 2), (2, 2), (2, 2), (1, 1)]
    z = jnp.arange(3.0)
    np.testing.assert_allclose(latents_for_model(config, z), 0.476986 * z)
    np.testing.assert_allclose(latents_from_model(config, z), z / 0.476986)


def test_a_config_survives_the_round_trip():
    case = vae_cases.load(FOLDER, WINDOWS)
    config = HunyuanVideoVAEConfig.from_dict(case.config)
    assert HunyuanVideoVAEConfig.from_dict(config.to_dict()) == config
    assert not config.mid_block_add_attention


def test_all_problems_of_a_config_are_in_one_message():
    values = {
        "temporal_compression_ratio": 8,
        "colour": 1,
        "up_block_types": ["UpBlock"] * 4,
        "block_out_channels": [8, 16, 16],
    }
    with pytest.raises(ValueError) as found:
        HunyuanVideoVAEConfig.from_dict(values)
    text = str(found.value)
    assert "temporal_compression_ratio: expected 4, found 8" in text
    assert "colour: not a field of a HunyuanVideo VAE config" in text
    assert "up_block_types: expected a list of 3 values" in text
    assert "'HunyuanVideoUpBlock3D', found ['UpBlock'" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": (32, 32)}, "expected at least 3 levels, found 2"),
        ({"block_out_channels": (32, 30, 32)}, r"multiples of norm_num_groups \(32\)"),
        ({"spatial_compression_ratio": 6}, "expected a power of two, found 6"),
        ({"spatial_compression_ratio": 32}, "expected at most 16 with 4 levels"),
        (
            {"scaling_factor": -1.0},
            "expected a number above 0 and at most 1e.06, found -1.0",
        ),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        HunyuanVideoVAEConfig(**changes)
