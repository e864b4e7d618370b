"""Groups of frames: the same numbers, and nothing as wide as a whole chunk."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from sixbit_jax.vae.causal_conv import CausalConv3d, Padding, Stream
from sixbit_jax.vae.cogvideox import AutoencoderKLCogVideoX
from sixbit_jax.vae.cogvideox_config import CogVideoXVAEConfig
from sixbit_jax.vae.frame_groups import (
    convolve,
    frames_per_group,
    joined,
    split,
    split_all,
    starts,
)
from sixbit_jax.vae.group_norm import GroupNorm, SpatialNorm
from tests.sixbit_jax.vae.small import random_vae, relative_l2

TINY = CogVideoXVAEConfig(
    block_out_channels=(4, 8, 8),
    latent_channels=2,
    layers_per_block=1,
    norm_num_groups=2,
)


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_groups_are_the_chunk_in_the_order_of_time():
    x = normal(1, 5, 2, 2, 3)
    groups = split(x, 2)
    assert [group.shape[1] for group in groups] == [2, 2, 1]
    assert starts(groups) == [0, 2, 4]
    np.testing.assert_array_equal(joined(groups), x)
    assert [group.shape[1] for group in split_all(groups, 1)] == [1] * 5


def test_a_group_has_as_many_frames_as_the_stream_allows():
    shape, one = (1, 8, 480, 720, 128), 3 * 480 * 720 * 128 * 2
    for count in (1, 2, 4):
        stream = Stream(None, group_bytes=count * one)
        assert frames_per_group(stream, shape, jnp.bfloat16) == count
        assert frames_per_group(stream, shape, jnp.float32) == max(1, count // 2)
    assert frames_per_group(Stream(None, group_bytes=1), shape, jnp.bfloat16) == 1


@pytest.mark.parametrize("padding", [Padding.ZEROS, Padding.FIRST_FRAME])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_convolution_of_groups_is_that_of_the_chunk(padding, size):
    layer = CausalConv3d(3, 4, 3, padding=padding, rngs=nnx.Rngs(0))
    state = None
    for number, frames in enumerate((5, 4)):
        x = normal(1, frames, 4, 5, 3, seed=number)
        residual = normal(1, frames, 4, 5, 4, seed=9)
        whole, parts = Stream(state), Stream(state)
        expected = layer(2 * x, whole) + residual
        found = convolve(
            layer,
            split(x, size),
            parts,
            before=lambda _, group: 2 * group,
            residual=split(residual, size),
        )
        np.testing.assert_allclose(joined(found), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(parts.state()[0], whole.state()[0])
        state = whole.state()


@pytest.mark.parametrize("frames", [4, 5])
def test_norms_of_groups_have_the_statistics_of_the_chunk(frames):
    x, z = normal(1, frames, 4, 6, 8), normal(1, 3, 2, 3, 2, seed=1)
    for norm, context in (
        (GroupNorm(8, 2, eps=1e-6), ()),
        (SpatialNorm(8, 2, 2, eps=1e-6, rngs=nnx.Rngs(0)), (z,)),
    ):
        groups = split(x, 2)
        normalize = norm.over(groups, *context)
        found = [normalize(i, group) for i, group in enumerate(groups)]
        assert relative_l2(joined(found), norm(x, *context)) < 1e-6


@pytest.mark.parametrize("half", ["encode", "decode"])
def test_an_autoencoder_of_single_frames_is_that_of_whole_chunks(half):
    vae = random_vae(AutoencoderKLCogVideoX, TINY)
    shapes = {
        "encode": [(1, 5, 8, 12, 3), (1, 4, 8, 12, 3)],
        "decode": [(1, 3, 2, 3, 2), (1, 2, 2, 3, 2)],
    }[half]
    whole, alone = None, None
    for number, shape in enumerate(shapes):
        x = normal(*shape, seed=number)
        streams = Stream(whole), Stream(alone, group_bytes=1)
        run = getattr(vae, f"{half}_chunk")
        expected, found = (run(x, stream) for stream in streams)
        assert relative_l2(found, expected) < 1e-5
        whole, alone = (stream.state() for stream in streams)
        for one, two in zip(alone, whole, strict=True):
            assert relative_l2(one, two) < 1e-5


def widest(jaxpr) -> int:
    """Bytes of the largest array that a program makes."""
    found = 0
    for equation in jaxpr.eqns:
        for value in equation.outvars:
            shape = getattr(value.aval, "shape", ())
            found = max(found, math.prod(shape) * value.aval.dtype.itemsize)
        for inner in jaxprs_in_params(equation.params):
            found = max(found, widest(inner))
    return found


@pytest.mark.parametrize("latents", [2, 3])
def test_nothing_at_real_size_is_wider_than_three_stacked_frames(latents):
    """All frames of a chunk, stacked for the widest convolution, are 4.2 GB."""
    config = CogVideoXVAEConfig()
    vae = nnx.eval_shape(lambda: AutoencoderKLCogVideoX(config, rngs=nnx.Rngs(0)))
    graph, parameters = nnx.split(vae)
    parameters = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), parameters
    )
    z = jax.ShapeDtypeStruct((1, latents, 60, 90, 16), jnp.bfloat16)

    def decode(parameters, z):
        return nnx.merge(graph, parameters).decode_chunk(z, Stream(None))

    jaxpr = jax.make_jaxpr(decode)(parameters, z).jaxpr
    assert widest(jaxpr) == 3 * 480 * 720 * 256 * 2
