"""Token grids and live channel scales against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.numerics import int8
from sixbit_jax.nn.fake_quantize import fake_quantize_tokens
from sixbit_jax.nn.token_levels import (
    block_scaled_product,
    channel_scales,
    token_levels,
)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, 6, 64)) * np.exp(rng.standard_normal(64))
    values[0, 0] = 0.0
    values[0, 1] = np.abs(values[0, 1])
    values[0, 2] *= 1e-30
    return values.astype(np.float32)


@pytest.mark.parametrize("bits", [4, 5, 6, 7])
def test_levels_are_the_asymmetric_grid_of_each_token(x, bits):
    levels, scales = token_levels(x, bits)
    assert levels.dtype == jnp.int8
    found = np.asarray(levels, np.float32)
    span = np.maximum(x.max(-1), 0) - np.minimum(x.min(-1), 0)
    assert (found.max(-1) - found.min(-1) <= 2**bits - 1).all()
    assert (np.abs(found) <= 2**bits - 1).all()
    # every value is within half a step, and a step is the range over its levels
    error = np.abs(found * scales[..., None] - x)
    assert (error <= 0.5001 * span[..., None] / (2**bits - 1) + 1e-30).all()
    assert (found[0, 0] == 0).all()


def test_values_equal_the_fake_quantization_that_tuning_uses(x):
    levels, scales = token_levels(x[1], 6)
    expected = fake_quantize_tokens(jnp.asarray(x[1]), jnp.float32(63))
    np.testing.assert_allclose(levels * scales[..., None], expected, rtol=1e-5)


def test_eight_bits_are_the_symmetric_grid_of_the_int8_route(x):
    for found, expected in zip(token_levels(x, 8), int8.quantize(x), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_token_that_is_not_finite_leaves_the_others_alone(x, bad):
    broken = x.copy()
    broken[1, 2, 3] = bad
    levels, scales = token_levels(broken, 4)
    others = np.ones(x.shape[:2], bool)
    others[1, 2] = False
    clean = token_levels(x, 4)
    assert np.isnan(scales[1, 2])
    assert (levels[1, 2] == 0).all()
    np.testing.assert_array_equal(levels[others], clean[0][others])
    np.testing.assert_array_equal(scales[others], clean[1][others])


def test_channel_scales_are_the_maxima_of_blocks_in_each_batch_entry(x):
    expected = np.abs(x).reshape(2, 6, 4, 16).max((1, 3))
    np.testing.assert_array_equal(channel_scales(x, 16), expected)
    np.testing.assert_array_equal(channel_scales(x), np.abs(x).max(1))
    with pytest.raises(ValueError, match="divides the 64 channels, found 48"):
        channel_scales(x, 48)
    with pytest.raises(ValueError, match="4 to 8 bits, found 3"):
        token_levels(x, 3)


@pytest.mark.parametrize("block", [2, 32])  # a loop of 32 rounds, and none
def test_block_scaled_product_adds_exact_products(block):
    rng = np.random.default_rng(0)
    levels = rng.integers(-127, 128, (2, 5, 64), np.int8)
    values = rng.integers(-127, 128, (3, 64), np.int8)
    scales = rng.random((2, 64 // block)).astype(np.float32)
    spread = np.repeat(scales, block, -1)[:, None].astype(np.float64)
    expected = (levels * spread) @ values.T.astype(np.float64)
    found = block_scaled_product(levels, jnp.asarray(scales), values)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-2)
