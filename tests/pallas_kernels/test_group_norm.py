"""channel_moments: the definition, the kernel in the interpreter, what it refuses."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.group_norm import channel_moments, mosaic_gpu

# CogVideoX's decoder at 480x720: (pixels of a chunk, channels).
SHAPES = [
    (2 * 60 * 90, 512),
    (4 * 120 * 180, 256),
    (8 * 240 * 360, 256),
    (9 * 480 * 720, 128),
]


def inputs(pixels: int, channels: int, batch: int = 2):
    x = 3 + jax.random.normal(jax.random.key(0), (batch, pixels, channels))
    return x.astype(jnp.bfloat16), jnp.linspace(2.0, 4.0, channels) + jnp.zeros(
        (batch, 1)
    )


def expected(x, pivot):
    distance = np.asarray(x, np.float64) - np.asarray(pivot, np.float64)[:, None]
    return distance.sum(1), np.square(distance).sum(1)


def check(found, x, pivot):
    total, squares = expected(x, pivot)
    np.testing.assert_allclose(found.total, total, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(found.squares, squares, rtol=1e-5)


def test_reference_is_the_definition():
    x, pivot = inputs(300, 64)
    check(channel_moments(x, pivot, implementation="reference"), x, pivot)


@pytest.mark.parametrize(("pixels", "channels"), [(700, 128), (256, 256), (131, 512)])
def test_kernel_is_the_definition_in_the_interpreter(pixels, channels):
    x, pivot = inputs(pixels, channels)
    interpret = plgpu.InterpretGPUParams()
    found = mosaic_gpu.channel_moments(x, pivot, blocks=2, interpret=interpret)
    check(found, x, pivot)


@pytest.mark.parametrize(("pixels", "channels"), SHAPES)
def test_kernel_lowers_for_cuda_at_real_shapes(lower_for_cuda, pixels, channels):
    text = lower_for_cuda(
        functools.partial(channel_moments, implementation="mosaic_gpu"),
        jax.ShapeDtypeStruct((1, pixels, channels), jnp.bfloat16),
        jax.ShapeDtypeStruct((1, channels), jnp.float32),
    )
    assert "mosaic_gpu" in text


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 9999, 128), jnp.float32, "reads bfloat16, found float32"),
        ((1, 9999, 96), jnp.bfloat16, "found 96"),
        ((1, 9999, 64), jnp.bfloat16, "found 64"),
        ((1, 99, 128), jnp.bfloat16, "at least 16896 pixels of 128 channels, found 99"),
    ],
)
def test_kernel_refuses_what_it_cannot_do(shape, dtype, message):
    with pytest.raises(NotImplementedError, match=message):
        channel_moments(
            jnp.zeros(shape, dtype),
            jnp.zeros((1, shape[2])),
            implementation="mosaic_gpu",
        )


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"found \[2, 8, 4\] and \[8, 4\]"):
        channel_moments(jnp.zeros((2, 8, 4)), jnp.zeros((8, 4)))
