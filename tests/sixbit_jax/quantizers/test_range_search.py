"""Range search against its definition in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.formats.uniform_grid import minmax_grid
from sixbit_jax.quantizers.range_search import search_range


def rows(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_t(3, shape).astype(np.float32)


def rounded(row, low, high, top):
    scale = (high - low) / top
    zero = np.round(-low / scale)
    codes = np.clip(np.round(row / scale) + zero, 0, top)
    return scale, zero, ((row - (codes - zero) * scale) ** 2).sum()


@pytest.mark.parametrize("bits", [3, 6])
def test_the_best_of_fifty_ranges_per_row(bits):
    w, top = rows(3, 40), np.float32(2**bits - 1)
    grid = search_range(jnp.asarray(w), float(top))
    for row, scale, zero in zip(w, *grid, strict=True):
        tried = [
            rounded(
                row,
                row.min() * np.float32(1 - 0.02 * i),
                row.max() * np.float32(1 - 0.02 * i),
                top,
            )
            for i in range(50)
        ]
        best = min(tried, key=lambda found: found[2])
        error = ((row - _decoded(row, scale, zero, top)) ** 2).sum()
        np.testing.assert_allclose(error, best[2], rtol=1e-4)
        np.testing.assert_allclose(scale, best[0], rtol=1e-4)


def _decoded(row, scale, zero, top):
    codes = np.clip(np.round(row / scale) + zero, 0, top)
    return (codes - zero) * scale


def test_widths_may_differ_between_matrices_of_a_stack():
    w = jnp.asarray(rows(2, 4, 32))
    both = search_range(w, jnp.array([7.0, 255.0]))
    for i, top in enumerate((7.0, 255.0)):
        alone = search_range(w[i], top)
        np.testing.assert_allclose(both.scale[i], alone.scale, rtol=1e-6)
        np.testing.assert_array_equal(both.zero_point[i], alone.zero_point)


def test_one_range_is_round_to_nearest():
    w = jnp.asarray(rows(4, 32))
    found, plain = search_range(w, 15.0, shrinks=1), minmax_grid(w, 4)
    np.testing.assert_allclose(found.scale, plain.scale, rtol=1e-6)
    np.testing.assert_array_equal(found.zero_point, plain.zero_point)


def test_zero_stays_zero_where_all_values_have_one_sign():
    w = jnp.abs(jnp.asarray(rows(3, 32))) + 1.0
    grid = search_range(jnp.concatenate([w, -w, 0 * w]), 15.0)
    np.testing.assert_array_equal(grid.zero_point[:3], 0)
    np.testing.assert_array_equal(grid.zero_point[3:6], 15)
    np.testing.assert_array_equal(grid.scale[6:], 1)


def test_bad_inputs_are_refused():
    with pytest.raises(ValueError, match=r"expected \[\.\.\., N, K\].*found \(4,\)"):
        search_range(jnp.zeros(4), 7.0)
    with pytest.raises(ValueError, match=r"1 to 50 ranges, found .* 51"):
        search_range(jnp.zeros((4, 4)), 7.0, shrinks=51)
