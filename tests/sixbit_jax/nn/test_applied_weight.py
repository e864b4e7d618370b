"""The corrected product against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.nn.applied_weight import CorrectedWeight, ObservedWeight
from sixbit_jax.nn.fake_quantize import fake_quantize_tokens
from sixbit_jax.nn.linear import matmul

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 8, 6)).astype(np.float32)
W = RNG.standard_normal((5, 6)).astype(np.float32)
A = RNG.standard_normal((1, 6)).astype(np.float32)
B = RNG.standard_normal((5, 1)).astype(np.float32)
# Two text rows, then three frames of two tokens.
M = np.array([0.5, 1.0, 2.0, 3.0], np.float32)
PER_TOKEN = np.array([0.5, 0.5, 1, 1, 2, 2, 3, 3], np.float32)[:, None]


def test_the_estimator_is_weighted_by_m_and_not_by_one_plus_m():
    weight = CorrectedWeight(*map(jnp.asarray, (W, A, B, M)), text_rows=2)
    found = matmul(jnp.asarray(X), weight, None)
    expected = X @ W.T + (PER_TOKEN * (X @ A.T)) @ B.T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # The released code applies (1 + M).
    wrong = X @ W.T + ((1 + PER_TOKEN) * (X @ A.T)) @ B.T
    assert np.abs(found - wrong).max() > 0.1


def test_without_factors_the_correction_folds_into_the_weight():
    weight = CorrectedWeight(*map(jnp.asarray, (W, A, B)))
    found = matmul(jnp.asarray(X), weight, jnp.ones(5))
    np.testing.assert_allclose(found, X @ (W + B @ A).T + 1, rtol=1e-4, atol=1e-5)


def test_both_products_read_the_quantized_activation():
    levels = jnp.float32(15)
    weight = CorrectedWeight(
        *map(jnp.asarray, (W, A, B, M)), activation_levels=levels, text_rows=2
    )
    x = np.asarray(fake_quantize_tokens(jnp.asarray(X), levels))
    expected = x @ W.T + (PER_TOKEN * (x @ A.T)) @ B.T
    found = matmul(jnp.asarray(X), weight, None)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(x - X).max() > 0.01


def test_layers_are_scanned_over():
    stack = jax.tree.map(
        lambda x: jnp.stack([jnp.asarray(x), 2 * jnp.asarray(x)]),
        CorrectedWeight(*map(jnp.asarray, (W, A, B, M)), text_rows=2),
    )
    _, found = jax.lax.scan(
        lambda c, weight: (c, matmul(jnp.asarray(X), weight, None)), 0, stack
    )
    first = X @ W.T + (PER_TOKEN * (X @ A.T)) @ B.T
    second = 2 * X @ W.T + (2 * PER_TOKEN * (X @ (2 * A).T)) @ (2 * B).T
    np.testing.assert_allclose(found, [first, second], rtol=1e-4, atol=1e-4)


def test_tokens_that_are_no_whole_frames_are_refused():
    weight = CorrectedWeight(*map(jnp.asarray, (W, A, B, M)), text_rows=1)
    with pytest.raises(ValueError, match=r"1 text rows and 3 frames.*\(2, 8, 6\)"):
        matmul(jnp.asarray(X), weight, None)


def test_an_observer_sees_what_the_weight_multiplies():
    seen = []
    found = matmul(jnp.asarray(X), ObservedWeight(jnp.asarray(W), seen.append), None)
    np.testing.assert_array_equal(seen[0], X)
    np.testing.assert_allclose(found, X @ W.T, rtol=1e-4, atol=1e-5)
