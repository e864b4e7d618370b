"""Classifier-free guidance and its dynamic scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.sampling.guidance import dynamic_guidance_scale, guide
from sixbit_jax.sampling.schedulers import CogVideoXDDIM


def test_guidance_extrapolates_from_the_unconditional_prediction():
    conditional = jnp.array([1.0, 2.0], jnp.bfloat16)
    unconditional = jnp.array([0.0, 4.0], jnp.bfloat16)
    guided = guide(conditional, unconditional, 6.0)
    assert guided.dtype == jnp.float32
    np.testing.assert_array_equal(guided, [6.0, -8.0])


@pytest.mark.parametrize(("scale", "which"), [(1.0, 0), (0.0, 1)])
def test_scale_one_is_conditional_and_zero_unconditional(scale, which):
    predictions = jnp.array([1.0, 3.0]), jnp.array([0.5, -2.0])
    np.testing.assert_array_equal(guide(*predictions, scale), predictions[which])


def test_dynamic_scale_stays_between_one_and_one_plus_scale():
    scales = dynamic_guidance_scale(6.0, CogVideoXDDIM().timesteps(50), 50)
    assert scales.shape == (50,)
    assert scales.dtype == jnp.float32
    assert scales.min() >= 1
    assert scales.max() <= 7


def test_dynamic_scale_at_known_timesteps():
    """t = 0 gives a half turn, t = n none, t = 2n a half turn the other way."""
    scales = dynamic_guidance_scale(6.0, np.array([0, 50, 100, 150]), 50)
    # At t = 150 the argument is -32 pi: whole turns.
    np.testing.assert_allclose(scales, [7.0, 1.0, 7.0, 1.0], atol=1e-5)


def test_dynamic_scale_takes_a_traced_scale():
    timesteps = CogVideoXDDIM().timesteps(10)
    traced = jax.jit(lambda scale: dynamic_guidance_scale(scale, timesteps, 10))(4.0)
    expected = dynamic_guidance_scale(4.0, timesteps, 10)
    np.testing.assert_allclose(traced, expected, rtol=1e-6)
