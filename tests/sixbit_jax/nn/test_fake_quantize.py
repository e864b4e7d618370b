"""Values against NumPy, gradients against the formula of learned step sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.nn.fake_quantize import (
    fake_quantize_rows,
    fake_quantize_tokens,
    levels_of,
)


@pytest.mark.parametrize("bits", [6, 8])
def test_tokens_are_rounded_on_their_own_asymmetric_grid(bits):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((2, 3, 20)) + 0.7).astype(np.float32)
    x[0, 0] = np.abs(x[0, 0])
    x[0, 1] = 0
    found = np.asarray(fake_quantize_tokens(jnp.asarray(x), jnp.float32(2**bits - 1)))
    low, high = np.minimum(x.min(-1), 0), np.maximum(x.max(-1), 0)
    step = ((high - low) / (2**bits - 1))[..., None]
    # Values lie within half a step: the rounded zero point may move the ends by as
    # much again.
    assert (np.abs(found - x) <= step * 1.0001).all()
    assert (np.abs(found - x) <= step * 0.5001).mean() > 0.9
    assert np.array_equal(found[0, 1], np.zeros(20))
    for token, width in zip(found.reshape(-1, 20), step.ravel(), strict=True):
        levels = token / max(width, 1e-9)
        np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
        assert np.ptp(np.round(levels)) <= 2**bits - 1


def test_step_size_gradient_is_that_of_learned_step_sizes():
    w = jnp.array([[-9.0, -0.35, 0.2, 0.6, 30.0]])
    scale, zero, levels = jnp.array([0.5]), jnp.array([3.0]), jnp.float32(7)
    by_scale, by_weight = jax.grad(
        lambda s, w: fake_quantize_rows(w, s, zero, levels).sum(), argnums=(0, 1)
    )(scale, w)
    ratio = np.array([-0.35, 0.2, 0.6]) / 0.5
    expected = (np.round(ratio) - ratio).sum() + (0 - 3) + (7 - 3)
    np.testing.assert_allclose(by_scale, [expected], rtol=1e-5)
    np.testing.assert_array_equal(by_weight, [[0, 1, 1, 1, 0]])


def test_rows_have_their_own_grids_and_matrices_their_own_widths():
    w = jnp.array([[[0.26, 5.0]], [[0.26, 5.0]]])
    found = fake_quantize_rows(
        w, jnp.array([[0.5], [0.1]]), jnp.zeros((2, 1)), jnp.array([7.0, 15.0])
    )
    np.testing.assert_allclose(found, [[[0.5, 3.5]], [[0.3, 1.5]]], rtol=1e-6)


@pytest.mark.parametrize("bits", [1, 9, 4.0, True])
def test_other_widths_are_refused(bits):
    with pytest.raises(ValueError, match="bits: expected a whole number from 2 to 8"):
        levels_of(bits)
