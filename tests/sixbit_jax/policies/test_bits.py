"""Activation bits, effective bits, skip fraction."""

import math

import numpy as np
import pytest

from sixbit_jax.policies import (
    activation_bits,
    attention_density,
    effective_bits,
    route_shares,
    skip_fraction,
)
from sixbit_jax.routes import Route
from tests.sixbit_jax.policies.driving import grid


def test_bits_are_weighted_by_macs():
    # 3, 1, 4, 4 units of work per block
    route = np.array([[0, 1, 2, 0]] * 3)
    none = np.zeros(3, bool)
    expected = (3 * 4 + 1 * 8 + 4 * 16 + 4 * 4) / 12
    assert activation_bits(route, none, grid()) == pytest.approx(expected)
    assert effective_bits(route, none, grid()) == pytest.approx(expected)
    shares = route_shares(route, none, grid())
    expected = {Route.NVFP4: 7 / 12, Route.INT8: 1 / 12, Route.BF16: 4 / 12}
    assert shares == pytest.approx(dict.fromkeys(Route, 0.0) | expected)


def test_skipped_blocks_count_only_in_effective_bits():
    route = np.array([[[[1] * 4, [0] * 4, [2] * 4]]])  # steps, branches, blocks, sites
    skip = np.array([[[False, False, True]]])
    assert activation_bits(route, skip, grid()) == 6.0
    assert effective_bits(route, skip, grid()) == 4.0
    assert skip_fraction(skip) == pytest.approx(1 / 3)


def test_leading_axes_are_averaged():
    rng = np.random.default_rng(0)
    route, skip = rng.integers(0, 3, (5, 2, 3, 4)), rng.random((5, 2, 3)) < 0.3
    mean = np.mean(
        [effective_bits(r, s, grid()) for r, s in zip(route, skip, strict=True)]
    )
    assert effective_bits(route, skip, grid()) == pytest.approx(mean)


def test_nothing_executed_has_no_activation_bits():
    everything = np.ones(3, bool)
    assert math.isnan(activation_bits(np.zeros((3, 4), int), everything, grid()))
    assert effective_bits(np.zeros((3, 4), int), everything, grid()) == 0.0


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"routes \[..., 3, 4\].*\(2, 4\)"):
        activation_bits(np.zeros((2, 4), int), np.zeros(2, bool), grid())
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(5, 3\)"):
        effective_bits(np.zeros((3, 4), int), np.zeros((5, 3), bool), grid())


def test_the_density_of_attention_is_that_of_computed_blocks():
    skip = np.array([[False, True], [False, False]])
    density = np.array([[1.0, 0.0], [0.25, 0.25]])
    assert attention_density(density, skip) == pytest.approx(0.5)
    assert attention_density(density, np.ones((2, 2), bool)) == 1.0
