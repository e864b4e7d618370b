"""Histograms of rows against the rows themselves."""

import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.formats.uniform_grid import UniformGrid, nearest_levels
from sixbit_jax.quantizers.row_histogram import code_sums, row_histogram


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_the_histogram_knows_the_sums_of_every_grid(bits):
    # Whole numbers that fill the bins are their own histogram.
    rng = np.random.default_rng(0)
    w = rng.integers(-2000, 2093, (4, 600)).astype(np.float32)
    w[:, :2] = -2000, 2093
    histogram = row_histogram(jnp.asarray(w))
    np.testing.assert_array_equal(histogram.width, 1)
    steps = np.array([[0.3, 0.7, 1.0]], np.float32) * 4093 / 2**bits + 0.01
    zero = np.array([[0, 1, 2**bits - 1]], np.float32)
    grid = UniformGrid(*np.broadcast_arrays(steps, zero, np.ones((4, 1)))[:2])
    levels = nearest_levels(w[:, None], UniformGrid(*map(jnp.asarray, grid)), bits)
    levels = np.asarray(levels, np.float64)
    found = code_sums(histogram, grid, bits, w.shape[-1])
    np.testing.assert_allclose(found.levels, levels.mean(-1), rtol=1e-5)
    np.testing.assert_allclose(found.squares, (levels**2).mean(-1), rtol=1e-5)
    np.testing.assert_allclose(
        found.products, (levels * w[:, None]).mean(-1), rtol=1e-5
    )
    np.testing.assert_allclose(found.values[:, 0], w.mean(-1), rtol=1e-5)


def test_rows_on_one_side_of_zero_and_rows_of_zeros_are_inside():
    w = jnp.asarray([[3.0, 4.0], [-3.0, -4.0], [0.0, 0.0]])
    histogram = row_histogram(w)
    found = histogram.sums[:, -1:] * histogram.width
    np.testing.assert_allclose(found[:, 0], [7, -7, 0], rtol=1e-3)
    np.testing.assert_array_equal(histogram.counts[:, 0], 0)
    np.testing.assert_array_equal(histogram.counts[:, -1], 2)
