"""Bisection on functions that only sampling can judge."""

import math

import pytest

from sixbit_jax.calibration import find_largest, find_target


def staircase(tau: float) -> float:
    """A skip fraction: rises in steps of 1/50 and saturates at 0.6."""
    return min(math.floor(50 * tau / (1 + tau)) / 50, 0.6)


@pytest.mark.parametrize("target", [0.1, 0.3, 0.5])
def test_find_target_reaches_a_skip_fraction(target):
    result = find_target(staircase, target)
    assert result.achieved == pytest.approx(target, abs=0.0101)
    assert staircase(result.value) == result.achieved
    assert len(result.tried) <= 16


def test_find_target_widens_the_interval():
    result = find_target(staircase, 0.5, high=0.01)
    assert result.achieved == pytest.approx(0.5, abs=0.0101)
    assert result.value > 0.5


def test_find_target_says_what_it_found_instead():
    with pytest.raises(ValueError, match=r"0.9 was not reached.*range from 0 to 0.6"):
        find_target(staircase, 0.9, limit=16.0)
    with pytest.raises(ValueError, match=r"0.5 at 0.0, already above 0.3"):
        find_target(lambda tau: 0.5 + tau, 0.3)


def test_find_target_keeps_to_its_number_of_evaluations():
    calls = []
    find_target(lambda x: calls.append(x) or x, 1 / 3, tolerance=0.1, max_evaluations=3)
    assert len(calls) <= 3


def test_find_largest_stays_above_the_floor():
    def quality(tau):
        return 40.0 - 3.0 * tau

    result = find_largest(quality, 32.0)
    assert result.achieved >= 32.0
    assert result.value == pytest.approx(8 / 3, rel=0.011)
    assert find_largest(quality, -1e9, limit=8.0).value == 8.0


def test_find_largest_needs_a_start_above_the_floor():
    with pytest.raises(ValueError, match=r"30 at 0.0, already below 32"):
        find_largest(lambda tau: 30.0 - tau, 32.0)


def test_bad_arguments_and_nan_are_refused():
    with pytest.raises(ValueError, match=r"found low 1.0, high 1.0"):
        find_target(staircase, 0.3, low=1.0)
    with pytest.raises(ValueError, match=r"NaN at 0.0"):
        find_target(lambda _: math.nan, 0.3)
