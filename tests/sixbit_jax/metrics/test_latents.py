"""Latent drift."""

import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.metrics import latent_drift


def test_drift_is_relative_to_the_reference_per_sample():
    reference = jnp.stack([jnp.full((2, 3, 4, 4), 2.0), jnp.full((2, 3, 4, 4), -1.0)])
    latents = reference + jnp.array([0.5, 3.0])[:, None, None, None, None]
    np.testing.assert_allclose(latent_drift(latents, reference), [0.25, 3.0], rtol=1e-6)


def test_drift_of_low_precision_latents_is_computed_in_float32():
    reference = jnp.full((13, 16, 32, 32), 300.0, jnp.float16)
    # The sum of squares is far outside of float16.
    np.testing.assert_allclose(latent_drift(2 * reference, reference), 1.0, rtol=1e-5)


def test_equal_latents_do_not_drift():
    zeros = jnp.zeros((2, 1, 1, 2, 2))
    np.testing.assert_array_equal(latent_drift(zeros, zeros), [0, 0])
    assert np.isposinf(latent_drift(zeros + 1, zeros)).all()


def test_latents_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 4\) and \(1, 2, 3, 5\)"):
        latent_drift(jnp.zeros((1, 2, 3, 4)), jnp.zeros((1, 2, 3, 5)))
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and \(2, 3, 4\)"):
        latent_drift(jnp.zeros((2, 3, 4)), jnp.zeros((2, 3, 4)))
