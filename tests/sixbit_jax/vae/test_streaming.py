"""Streaming: chunks as they are ready, one program per shape, flat memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sixbit_jax.vae import streaming
from sixbit_jax.vae.cogvideox import AutoencoderKLCogVideoX
from sixbit_jax.vae.cogvideox_config import CogVideoXVAEConfig
from sixbit_jax.vae.streaming import decode_stream, encode, to_uint8
from sixbit_jax.vae.tiling import Tiling, blend_tiles
from tests.sixbit_jax.vae.small import joined, random_vae, relative_l2

TILING = Tiling(8, 8, 6, 6)


@pytest.fixture(scope="module")
def vae():
    config = CogVideoXVAEConfig(
        block_out_channels=(4, 8),
        latent_channels=2,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=2,
    )
    return random_vae(AutoencoderKLCogVideoX, config)


def latents(frames: int, size: tuple[int, int] = (3, 4)) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (1, frames, 2, *size))


def test_frames_come_in_chunks_as_they_are_ready(vae):
    chunks = decode_stream(vae, latents(5))
    assert [next(chunks).shape for _ in range(2)] == [(1, 5, 3, 6, 8), (1, 4, 3, 6, 8)]
    assert next(chunks, None) is None


def test_the_beginning_of_a_video_does_not_depend_on_its_end(vae):
    x = latents(6)
    short = joined(decode_stream(vae, x[:, :4], dtype=jnp.float32))
    whole = joined(decode_stream(vae, x, dtype=jnp.float32))
    np.testing.assert_array_equal(short, whole[:, : short.shape[1]])


def test_a_longer_video_needs_no_new_program(vae):
    joined(decode_stream(vae, latents(5)))
    programs = streaming._step._cache_size()
    joined(decode_stream(vae, latents(21)))
    assert streaming._step._cache_size() == programs


def test_the_state_is_donated_and_has_one_size(vae):
    graph, parameters = nnx.split(vae)
    options = {
        "graph": graph,
        "decode": True,
        "method": "stacked",
        "dtype": jnp.dtype("float32"),
    }
    _, state = streaming._step(parameters, None, latents(3), **options)
    sizes = [part.shape for part in state]
    step = streaming._step.lower(parameters, state, latents(2), **options).compile()
    nbytes = sum(part.nbytes for part in state)
    assert step.memory_analysis().alias_size_in_bytes >= nbytes
    _, after = streaming._step(parameters, state, latents(2), **options)
    assert [part.shape for part in after] == sizes
    assert all(part.is_deleted() for part in state)


@pytest.mark.parametrize("tiling", [None, TILING])
def test_uint8_frames_are_the_rounded_floats(vae, tiling):
    x = latents(3, (6, 7))
    exact = joined(decode_stream(vae, x, dtype=jnp.float32, tiling=tiling))
    found = joined(
        decode_stream(vae, x, dtype=jnp.float32, tiling=tiling, output="uint8")
    )
    expected = np.round(np.clip(exact / 2 + 0.5, 0, 1) * 255)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, expected, atol=1)
    assert (found != expected).mean() < 0.01


def test_uint8_covers_black_to_white():
    values = jnp.asarray([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert to_uint8(values).tolist() == [0, 0, 128, 255, 255]


def test_tiles_that_cover_the_frame_are_the_whole_frame(vae):
    x = latents(3)
    whole = joined(decode_stream(vae, x, dtype=jnp.float32))
    tiled = joined(decode_stream(vae, x, dtype=jnp.float32, tiling=TILING))
    np.testing.assert_array_equal(tiled, whole)


def test_every_tile_continues_its_own_stream(vae):
    x = latents(5, (3, 6))
    tiled = joined(decode_stream(vae, x, dtype=jnp.float32, tiling=TILING))
    # What the tile to the left does not reach.
    first = joined(decode_stream(vae, x[..., :4], dtype=jnp.float32))
    second = joined(decode_stream(vae, x[..., 3:], dtype=jnp.float32))
    assert tiled.shape == (1, 9, 3, 6, 12)
    np.testing.assert_array_equal(tiled[..., :6], first[..., :6])
    np.testing.assert_array_equal(tiled[..., 8:], second[..., 2:])


def test_blending_equal_tiles_changes_nothing():
    picture = np.random.default_rng(0).standard_normal((1, 1, 1, 20, 14))
    picture = picture.astype(np.float32)
    tiles = [
        [picture[..., i : i + 8, j : j + 8] for j in range(0, 14, 6)]
        for i in range(0, 20, 6)
    ]
    found = blend_tiles(tiles, tiling=TILING)
    assert relative_l2(found, picture) < 1e-6


def test_the_encoder_gives_float32_moments_of_the_compressed_size(vae):
    video = jnp.zeros((2, 9, 3, 5, 7), jnp.float32)
    moments = encode(vae, video, dtype=jnp.bfloat16)
    assert moments.mean.shape == moments.logvar.shape == (2, 5, 2, 2, 3)
    assert moments.mean.dtype == moments.logvar.dtype == jnp.float32


def test_log_variances_are_clipped(vae):
    graph, state = nnx.split(vae)
    large = nnx.merge(graph, jax.tree.map(lambda leaf: leaf * 1e3, state))
    moments = encode(large, jnp.ones((1, 1, 3, 4, 4)))
    assert float(moments.logvar.min()) == -30.0
    assert float(moments.logvar.max()) == 20.0


@pytest.mark.parametrize("shape", [(1, 3, 3, 4, 4), (1, 0, 2, 4, 4), (3, 2, 4, 4)])
def test_latents_of_another_shape_are_refused_at_once(vae, shape):
    with pytest.raises(ValueError, match=r"latents: expected \[batch, frames, 2, "):
        decode_stream(vae, jnp.zeros(shape))


def test_bad_options_are_refused_at_once(vae):
    x = latents(2, (9, 9))
    with pytest.raises(ValueError, match="output: expected 'float' or 'uint8'"):
        decode_stream(vae, x, output="png")
    with pytest.raises(ValueError, match="expected a positive multiple of 2, found 7"):
        decode_stream(vae, x, tiling=Tiling(7, 8, 4, 4))
    with pytest.raises(ValueError, match="stride_width: expected 4 to 8"):
        decode_stream(vae, x, tiling=Tiling(8, 8, 4, 2))


def test_videos_that_cannot_be_encoded_are_refused(vae):
    with pytest.raises(ValueError, match="expected at least 2x2 pixels, found 1x9"):
        encode(vae, jnp.zeros((1, 1, 3, 1, 9)))
    with pytest.raises(ValueError, match="height: the last tile is 1 pixels"):
        encode(vae, jnp.zeros((1, 1, 3, 13, 8)), tiling=TILING)
    with pytest.raises(ValueError, match=r"video: expected \[batch, frames, 3, "):
        encode(vae, jnp.zeros((1, 3, 1, 8, 8)))
