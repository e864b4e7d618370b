"""Group normalization against its definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sixbit_jax.vae.group_norm import (
    GroupNorm,
    SpatialNorm,
    group_statistics,
    latent_frames,
)
from tests.sixbit_jax.vae.small import relative_l2


def definition(x, groups: int, eps: float) -> np.ndarray:
    x = np.asarray(x, np.float64)
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    mean = grouped.mean((1, 2, 3, 5), keepdims=True)
    variance = grouped.var((1, 2, 3, 5), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + eps)).reshape(x.shape)


def silu(y):
    return y / (1 + np.exp(-y))


@pytest.mark.parametrize("mean", [0.0, 3.0, -300.0])
def test_statistics_hold_where_the_mean_is_large(mean):
    x = mean + jax.random.normal(jax.random.key(0), (2, 3, 5, 7, 8))
    found = group_statistics(x, 4, eps=1e-6)
    normalized = (x - found.mean[:, None, None, None]) * found.scale[
        :, None, None, None
    ]
    assert relative_l2(normalized, definition(x, 4, 1e-6)) < 1e-5


@pytest.mark.parametrize("activate", [True, False])
def test_group_norm_is_the_definition(activate):
    layer = GroupNorm(8, 2, eps=1e-3)
    layer.weight.set_value(jnp.arange(8.0))
    layer.bias.set_value(jnp.linspace(-1, 1, 8))
    x = jax.random.normal(jax.random.key(1), (2, 3, 5, 7, 8))
    expected = definition(x, 2, 1e-3) * np.arange(8) + np.linspace(-1, 1, 8)
    expected = silu(expected) if activate else expected
    assert relative_l2(layer(x, activate=activate), expected) < 1e-6


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (4, 2), (5, 3), (9, 3)])
def test_spatial_norm_is_the_definition(frames, latents):
    layer = SpatialNorm(8, 3, 2, eps=1e-6, rngs=nnx.Rngs(0))
    layer.norm_layer.weight.set_value(jnp.arange(8.0))
    layer.norm_layer.bias.set_value(jnp.linspace(-1, 1, 8))
    x = jax.random.normal(jax.random.key(1), (2, frames, 6, 8, 8))
    z = np.asarray(jax.random.normal(jax.random.key(2), (2, latents, 3, 2, 3)))
    # Enlarged first, as diffusers does.
    large = z[:, latent_frames(frames, latents)].repeat(2, 2).repeat(4, 3)
    y = definition(x, 2, 1e-6) * np.arange(8) + np.linspace(-1, 1, 8)
    expected = silu(y * np.asarray(layer.conv_y(large)) + layer.conv_b(large))
    assert relative_l2(layer(x, jnp.asarray(z)), expected) < 1e-6


def test_the_first_of_an_odd_number_of_frames_has_its_own_latents():
    assert latent_frames(9, 3).tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert latent_frames(8, 2).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert latent_frames(3, 3).tolist() == [0, 1, 2]
    assert latent_frames(1, 1).tolist() == [0]


def test_bfloat16_is_normalized_in_float32():
    x = (5 + jax.random.normal(jax.random.key(3), (1, 2, 4, 4, 4))).astype(jnp.bfloat16)
    y = GroupNorm(4, 2, eps=1e-6)(x)
    assert y.dtype == jnp.bfloat16
    assert relative_l2(y.astype(jnp.float32), silu(definition(x, 2, 1e-6))) < 3e-3


def test_kernels_that_cannot_run_here_are_replaced_by_the_definition():
    x = jax.random.normal(jax.random.key(4), (1, 2, 4, 4, 4))
    plain = group_statistics(x, 2, eps=1e-6)
    asked = group_statistics(x, 2, eps=1e-6, kernels=True)
    np.testing.assert_array_equal(asked.mean, plain.mean)
    np.testing.assert_array_equal(asked.scale, plain.scale)
