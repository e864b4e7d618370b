"""BGR on uniform grids."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixbit_jax.formats.uniform_grid import (
    UniformGrid,
    decode_uniform,
    encode_uniform,
    minmax_grid,
)
from sixbit_jax.quantizers.refine_uniform import refined_grid
from tests.sixbit_jax.quantizers.weights import heavy_tailed, matrices


def errors(w: np.ndarray, grid: UniformGrid, bits: int) -> np.ndarray:
    """Squared error of each row, summed in float64."""
    stored = np.asarray(decode_uniform(encode_uniform(w, grid, bits), grid), np.float64)
    return ((stored - w) ** 2).sum(-1)


def assert_never_worse_than_minmax(w: np.ndarray, bits: int) -> None:
    plain = errors(w, minmax_grid(w, bits), bits)
    refined = errors(w, refined_grid(w, bits), bits)
    size = (w.astype(np.float64) ** 2).sum(-1)
    assert (refined <= plain * (1 + 1e-5) + 1e-12 * size).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(matrices((2, 3, 24)), st.integers(2, 8))
def test_no_row_is_worse_than_minmax(w, bits):
    w[1, 1] = w[1, 1, 0]
    assert_never_worse_than_minmax(w, bits)


@pytest.mark.parametrize("bits", range(2, 9))
def test_no_row_of_real_length_is_worse_than_minmax(bits):
    # Rounded values repeat, and bfloat16 puts some of them on decision boundaries.
    t = np.random.default_rng(0).standard_t(2, (16, 3072)).astype(np.float32)
    coarse = np.round(4 * t) / 4
    w = np.concatenate([t, t.astype(jnp.bfloat16).astype(np.float32), coarse, -(t**2)])
    assert_never_worse_than_minmax(w, bits)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(matrices((2, 3, 24)), st.sampled_from((2, 4, 8)))
def test_grids_are_valid(w, bits):
    for grid in (minmax_grid(w, bits), refined_grid(w, bits)):
        assert grid.scale.shape == grid.zero_point.shape == (2, 3)
        assert (np.asarray(grid.scale) > 0).all()
        zero = np.asarray(grid.zero_point)
        assert ((zero >= 0) & (zero < 2**bits) & (zero == np.round(zero))).all()
        codes = encode_uniform(w, grid, bits)
        assert codes.dtype == jnp.uint8
        assert int(codes.max()) < 2**bits


@pytest.mark.parametrize(("bits", "limit"), [(2, 0.4), (3, 0.4), (4, 0.45), (6, 0.99)])
def test_heavy_tails_lose_most_of_the_error_at_few_bits(bits, limit):
    w = heavy_tailed((16, 3072))
    plain = errors(w, minmax_grid(w, bits), bits).sum()
    assert errors(w, refined_grid(w, bits), bits).sum() < limit * plain


def test_more_starts_never_hurt():
    w = heavy_tailed((16, 512))
    one = errors(w, refined_grid(w, 4, num_clips=0), 4)
    many = errors(w, refined_grid(w, 4, num_clips=20), 4)
    assert (many <= one * (1 + 1e-6)).all()
    assert many.sum() < 0.99 * one.sum()


def test_a_grid_that_fits_is_found_exactly():
    w = np.array([[-0.5, 0.0, 0.25, 3.25], [1.0, 2.0, 3.0, 15.0]], np.float32)
    grid = refined_grid(w, 4)
    np.testing.assert_allclose(decode_uniform(encode_uniform(w, grid, 4), grid), w)
    np.testing.assert_array_equal(grid.zero_point, [2, 0])


def test_the_refinement_step_is_the_papers():
    # One round on one row, by hand: codes of MinMax, then s by least squares.
    w = np.array([[0.0, 1.0, 1.2, 1.4, 3.0]], np.float32)
    levels = np.array([0, 1, 1, 1, 3])
    scale = (levels * w[0]).sum() / (levels**2).sum()
    grid = refined_grid(w, 2, num_clips=0, max_rounds=1)
    np.testing.assert_allclose(grid.scale, [scale], rtol=1e-6)
    np.testing.assert_array_equal(grid.zero_point, [0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_with_nan_or_inf_gets_minmax_and_leaves_the_others_alone(value):
    w = heavy_tailed((3, 64))
    broken = w.copy()
    broken[1, 5] = value
    one, other = refined_grid(w, 4), refined_grid(broken, 4)
    plain = minmax_grid(broken, 4)
    for ours, same, minmax in zip(one, other, plain, strict=True):
        np.testing.assert_array_equal(ours[::2], same[::2])
        np.testing.assert_array_equal(same[1], minmax[1])


def test_rows_do_not_depend_on_the_rows_around_them():
    # More rows than a chunk of the CPU's, and a rest. Sums of other compiled shapes
    # round differently, so that a grid can end elsewhere on the same flat minimum.
    w = heavy_tailed((2, 75, 96))
    whole = errors(w, refined_grid(w, 4), 4)
    for part in (slice(0, 3), slice(70, 75)):
        alone = errors(w[:, part], refined_grid(w[:, part], 4), 4)
        np.testing.assert_allclose(whole[:, part], alone, rtol=1e-3)


def searched_row_by_row(w: np.ndarray, bits: int) -> np.ndarray:
    """Least squared error of each row that BGR finds without any histogram."""
    w, top = w.astype(np.float64), 2**bits - 1
    low, high = w.min(-1, keepdims=True), w.max(-1, keepdims=True)
    least = np.full((len(w), 1), np.inf)

    def measured(scale, zero):
        levels = np.clip(np.round(w / scale), -zero, top - zero)
        return levels, ((w - scale * levels) ** 2).sum(-1, keepdims=True)

    for i in range(10):
        cut = i / 20 * (high - low)
        bottom, end = np.minimum(low + cut, 0), np.maximum(high - cut, 0)
        scale = (end - bottom) / top
        zero = np.round(-bottom / scale)
        levels, error = measured(scale, zero)
        for _ in range(8):
            products = (levels * w).sum(-1, keepdims=True)
            scale = products / (levels**2).sum(-1, keepdims=True)
            shift = (levels - w / scale).mean(-1, keepdims=True)
            moved = np.round(np.clip(zero + shift, 0, top))
            better = measured(scale, moved)[1] <= measured(scale, zero)[1]
            zero = np.where(better, moved, zero)
            levels, error = measured(scale, zero)
        least = np.minimum(least, error)
    return least[:, 0]


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("shape", [(32, 512), (16, 3072)])
def test_the_error_is_that_of_the_search_on_the_rows_themselves(bits, shape):
    w = heavy_tailed(shape, seed=1)
    slow = searched_row_by_row(w, bits)
    fast = errors(w, refined_grid(w, bits), bits)
    assert fast.sum() < 1.01 * slow.sum()
    assert (fast < 1.1 * slow).all()


@pytest.mark.parametrize("bits", [1, 9, 4.0, True])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match="bits, found"):
        minmax_grid(np.ones((2, 4), np.float32), bits)


def test_arrays_without_rows_and_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"K > 0, found shape \(2, 0\)"):
        refined_grid(np.ones((2, 0), np.float32), 4)
    with pytest.raises(ValueError, match=r"found shape \(4,\)"):
        minmax_grid(np.ones(4, np.float32), 4)
    with pytest.raises(ValueError, match="num_clips must be at least 0, found -1"):
        refined_grid(np.ones((2, 4), np.float32), 4, num_clips=-1)
