"""The block Hadamard rotation."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.numerics import block_hadamard
from pallas_kernels.numerics.hadamard import sylvester


def test_matrix_is_scipys_definition_written_out():
    # entry = (-1)^(number of common bits of row and column)
    rows = np.arange(128)
    common = np.array([[int(i & j).bit_count() for j in rows] for i in rows])
    np.testing.assert_array_equal(sylvester(128), 1 - 2 * (common % 2))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), block=st.sampled_from([16, 32, 128]))
def test_rotation_preserves_products_and_undoes_itself(seed, block):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((6, 256)).astype(np.float32)
    w = rng.standard_normal((10, 256)).astype(np.float32)
    xh, wh = block_hadamard(x, block), block_hadamard(w, block)
    np.testing.assert_allclose(xh @ wh.T, x @ w.T, atol=2e-4)
    np.testing.assert_allclose(block_hadamard(xh, block), x, atol=2e-6)


def test_rotation_mixes_only_inside_a_block():
    x = np.zeros((1, 256), np.float32)
    x[0, 130] = 1.0
    rotated = np.asarray(block_hadamard(x))
    assert (rotated[0, :128] == 0).all()
    np.testing.assert_allclose(np.abs(rotated[0, 128:]), 128**-0.5, rtol=1e-6)


def test_rotation_spreads_an_outlier_channel():
    x = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    x[:, 5] *= 60

    def outlier_ratio(y):
        return float(jnp.abs(y).max() / jnp.abs(y).mean())

    assert outlier_ratio(block_hadamard(x)) < 0.2 * outlier_ratio(x)


def test_dtype_is_kept_and_float32_is_used_inside():
    x = jnp.ones((2, 128), jnp.bfloat16)
    rotated = block_hadamard(x)
    assert rotated.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rotated[:, 1:], 0)


@pytest.mark.parametrize(("width", "block"), [(192, 128), (128, 48), (128, 0)])
def test_blocks_that_do_not_fit_are_refused(width, block):
    with pytest.raises(ValueError, match=str(block)):
        block_hadamard(jnp.zeros((2, width)), block)
