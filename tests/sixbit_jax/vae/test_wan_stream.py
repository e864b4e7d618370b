"""The Wan autoencoder over time: chunks, memory, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.vae import wan_steps
from sixbit_jax.vae.tiling import Tiling
from sixbit_jax.vae.wan import (
    chunk_length,
    decode_stream,
    encode,
    latents_for_model,
    latents_from_model,
)
from sixbit_jax.vae.wan_config import WanVAEConfig
from tests.golden import vae_wan_cases as cases
from tests.sixbit_jax.vae.wan_models import model_of, relative

LONG, LONG_22 = "21_f4_2x3_decode", "22_f3_1x3_decode"


@functools.cache
def _model(name):
    return model_of(cases.load(name))


def _parts(name, latents, **options) -> list[np.ndarray]:
    options = {"dtype": jnp.float32} | options
    return [np.asarray(x) for x in decode_stream(_model(name), latents, **options)]


@pytest.mark.parametrize("name", [LONG, LONG_22])
def test_longer_chunks_make_the_same_frames(name):
    latents = cases.load(name).inputs()
    single = np.concatenate(_parts(name, latents, chunk=1), 1)
    pairs = np.concatenate(_parts(name, latents, chunk=2), 1)
    assert pairs.shape == single.shape
    assert relative(pairs, single) < 2e-6


def test_longer_chunks_make_the_same_latents():
    case = cases.load("22_f9_32x48_encode")
    single = encode(_model(case.name), case.inputs(), chunk=1)
    pairs = encode(_model(case.name), case.inputs(), chunk=2)
    for one, two in zip(single, pairs, strict=True):
        assert one.shape == two.shape == (2, 3, 4, 2, 3)
        assert relative(np.asarray(two), np.asarray(one)) < 2e-6


def test_frames_come_as_they_are_ready_from_one_program():
    latents = cases.load(LONG).inputs()
    stream = decode_stream(_model(LONG), latents, dtype=jnp.float32, chunk=2)
    first = next(stream)
    assert first.shape == (2, 5, 3, 16, 24)
    programs = wan_steps.run_step._cache_size()
    assert [part.shape[1] for part in stream] == [8]
    short = _parts(LONG, latents[:, :3], chunk=2)
    assert [part.shape[1] for part in short] == [5, 4]
    # Neither the end of a video nor another length is another program.
    assert wan_steps.run_step._cache_size() == programs
    # What comes later changes nothing.
    np.testing.assert_array_equal(short[0], first)


def test_memory_does_not_grow_with_the_length():
    latents = cases.load(LONG).inputs()

    def held(repeats: int) -> set[int]:
        many = np.concatenate([latents] * repeats, 1)
        stream = decode_stream(_model(LONG), many, dtype=jnp.float32, chunk=1)
        found = []
        for _ in stream:
            found.append(sum(array.nbytes for array in jax.live_arrays()))
        assert len(found) == 4 * repeats
        # The first part is one frame and not four, and behind the last comes no other.
        return set(found[1:-1])

    assert len(held(1)) == 1
    assert held(1) == held(3)


def test_bfloat16_frames_are_near_those_of_float32():
    latents = cases.load(LONG).inputs()
    exact = np.concatenate(_parts(LONG, latents, chunk=1), 1)
    parts = _parts(LONG, latents, chunk=1, dtype=jnp.bfloat16)
    assert {part.dtype for part in parts} == {np.dtype(jnp.bfloat16)}
    assert 1e-4 < relative(np.concatenate(parts, 1).astype(np.float32), exact) < 0.03


def test_bytes_are_those_of_the_rounded_frames():
    latents = cases.load(LONG).inputs()[:, :1]
    (frames,) = _parts(LONG, latents, chunk=1)
    (found,) = _parts(LONG, latents, chunk=1, output="uint8")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.round((frames / 2 + 0.5) * 255))


def test_latents_of_the_model_and_back():
    config = WanVAEConfig()
    z = jnp.ones((1, 2, 16, 3, 4))
    ours = latents_from_model(config, z)
    np.testing.assert_allclose(ours[0, 1, 0], 2.8184 - 0.7571, rtol=1e-6)
    np.testing.assert_allclose(ours[0, 0, 15], 1.916 - 0.2921, rtol=1e-6)
    np.testing.assert_allclose(latents_for_model(config, ours), z, rtol=1e-6)
    with pytest.raises(ValueError, match=r"expected \[batch, frames, 16, height"):
        latents_from_model(config, jnp.ones((1, 2, 8, 3, 4)))


@pytest.mark.parametrize(
    ("frames", "height", "width", "dtype", "chunk"),
    [
        (21, 480, 832, jnp.bfloat16, 1),
        (21, 240, 416, jnp.bfloat16, 4),
        (21, 720, 1280, jnp.bfloat16, 1),
        (21, 16, 16, jnp.bfloat16, 7),
        (1, 16, 16, jnp.float32, 1),
    ],
)
def test_chunks_are_as_long_as_memory_allows(frames, height, width, dtype, chunk):
    sizes = {"frames": frames, "pixels": height * width, "dim": 96, "dtype": dtype}
    assert chunk_length(WanVAEConfig(), **sizes) == chunk


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 2, 3, 4, 4), {}, r"latents: expected \[batch, frames, 4, height, width\]"),
        ((2, 4, 4, 4), {}, r"found \[2, 4, 4, 4\]"),
        ((1, 0, 4, 4, 4), {}, r"found \[1, 0, 4, 4, 4\]"),
        ((1, 2, 4, 4, 4), {"chunk": 0}, "chunk: expected at least 1 latent frame"),
        ((1, 2, 4, 4, 4), {"output": "x"}, "output: expected 'float' or 'uint8'"),
        (
            (1, 2, 4, 4, 4),
            {"tiling": Tiling(33, 32, 32, 32)},
            "multiple of 8, found 33",
        ),
    ],
)
def test_bad_latents_are_refused_before_the_first_frame(shape, options, message):
    with pytest.raises(ValueError, match=message):
        decode_stream(_model(LONG), np.zeros(shape, np.float32), **options)


def test_bad_videos_are_refused_with_all_their_problems():
    model = _model(LONG_22)
    with pytest.raises(ValueError) as error:
        encode(model, np.zeros((1, 8, 3, 40, 8), np.float32))
    for part in (
        "frames: expected one more than a multiple of 4, such as 5 or 9, found 8",
        "height: expected a multiple of 16 pixels, found 40",
        "width: expected a multiple of 16 pixels, found 8",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="height: expected at least 8 pixels, found 7"):
        encode(_model(LONG), np.zeros((1, 1, 3, 7, 9), np.float32))
    with pytest.raises(ValueError, match=r"video: expected \[batch, frames, 3, height"):
        encode(model, np.zeros((1, 3, 8, 40, 8), np.float32))
