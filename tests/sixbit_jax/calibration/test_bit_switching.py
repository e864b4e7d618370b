"""`find_delta` against the policy itself."""

import numpy as np
import pytest

from sixbit_jax.calibration import find_delta, replay_switching
from sixbit_jax.policies import delta_gbs
from sixbit_jax.routes import Route
from tests.sixbit_jax.policies.driving import drive, routes


@pytest.fixture(scope="module")
def changes() -> np.ndarray:
    values = np.random.default_rng(0).gamma(2.0, 0.02, (4, 30))
    values[:, 0] = np.inf
    return values


def test_replay_is_what_the_policy_does(changes):
    for delta in (0.05, 0.2):
        steps = [{"output_change": value} for value in changes[0]]
        plans, _ = drive(delta_gbs(delta), steps)
        expected = routes(plans)[:, 0, 0] == Route.NVFP4
        np.testing.assert_array_equal(replay_switching(changes[0], delta), expected)


@pytest.mark.parametrize("target", [5.0, 6.0, 7.5])
def test_the_found_threshold_meets_the_target(changes, target):
    found = find_delta(changes, target)
    low = replay_switching(changes, found.delta)
    assert found.bits == pytest.approx(8 - 4 * low.mean())
    assert found.bits == pytest.approx(target, abs=0.1)


def test_other_widths_and_impossible_targets(changes):
    found = find_delta(changes, 5.0, low_bits=4, high_bits=6)
    assert found.bits == pytest.approx(5.0, abs=0.1)
    with pytest.raises(ValueError, match=r"4.0 to 8.0 bits, found 116 .* and 9"):
        find_delta(changes, 9)
    with pytest.raises(ValueError, match=r"nearest of runs of 3 steps is 6.67"):
        find_delta(changes[:, :3], 4.5)
    with pytest.raises(ValueError, match="found 0 positive changes"):
        find_delta(np.full(5, np.inf), 6)
