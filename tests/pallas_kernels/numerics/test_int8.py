"""INT8 against the NumPy oracle, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.numerics import int8
from tests.pallas_kernels.numerics import oracle

quantize = jax.jit(int8.quantize)


@pytest.mark.parametrize("kind", tuple(oracle.tensors(2, 32)))
@pytest.mark.parametrize("jitted", [True, False])
def test_values_and_scales_are_the_oracles(kind, jitted):
    x = oracle.tensors()[kind]
    values, scales = (quantize if jitted else int8.quantize)(x)
    expected_values, expected_scales = oracle.int8(x)
    assert values.dtype == np.int8
    np.testing.assert_array_equal(values, expected_values)
    np.testing.assert_array_equal(scales, expected_scales)


def test_the_largest_value_of_a_row_is_127_and_minus_128_is_not_used():
    x = oracle.tensors()["heavy_tailed"]
    values = np.asarray(quantize(x)[0])
    assert (np.abs(values.astype(np.int32)).max(-1) == 127).all()
    assert values.min() >= -127


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_bad_value_stays_in_its_row(poison):
    x = oracle.tensors(4, 64)["random"]
    expected = np.asarray(int8.fake_quantize(x)).copy()
    x[1, 20] = poison
    values = np.asarray(int8.fake_quantize(x))
    assert np.isnan(values[1]).all()
    np.testing.assert_array_equal(values[[0, 2, 3]], expected[[0, 2, 3]])


def test_nan_is_noticed_at_every_place_of_a_row():
    x = np.ones((256, 256), np.float32)
    np.fill_diagonal(x, np.nan)
    _, scales = int8.quantize(x)
    assert np.isnan(np.asarray(scales)).all()


def test_one_axis_is_one_row():
    values, scales = int8.quantize(jnp.array([1.0, -2.0, 0.0]))
    assert values.tolist() == [64, -127, 0]
    assert scales.shape == ()


def test_bfloat16_is_computed_in_float32_and_returned_as_bfloat16():
    x = jnp.asarray(oracle.tensors()["random"], jnp.bfloat16)
    assert int8.fake_quantize(x).dtype == jnp.bfloat16
    jax.tree.map(
        np.testing.assert_array_equal, quantize(x), quantize(x.astype(jnp.float32))
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), power=st.integers(-60, 60))
def test_error_bound_idempotence_and_equivariance(seed, power):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((8, 64)).astype(np.float32) * np.float32(2.0**power)
    values, scales = quantize(x)
    decoded = int8.dequantize(values, scales)
    assert (np.abs(decoded - x) <= np.asarray(scales)[:, None] * 0.50001).all()
    np.testing.assert_array_equal(quantize(decoded)[0], values)
    scaled_values, scaled = quantize(x * 8)
    np.testing.assert_array_equal(scaled_values, values)
    np.testing.assert_array_equal(scaled, scales * 8)
