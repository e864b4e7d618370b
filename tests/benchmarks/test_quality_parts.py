"""Parts of the quality harness that need no model."""

import numpy as np
import pytest

from benchmarks.quality import study as quality
from benchmarks.quality.calibrate import Recording, assign, correlations, span_of
from benchmarks.quality.policies import Setting, policy_of
from benchmarks.quality.rows import COMPARISONS, ROWS
from sixbit_jax.demo.evaluate import evaluation_attributes
from sixbit_jax.policies import BlockGrid, activation_bits


def test_calibration_captions_are_not_evaluated():
    evaluated = evaluation_attributes(64)
    chosen = quality.calibration_attributes(16, evaluated)
    both = {tuple(r) for r in evaluated.tolist()} & {tuple(r) for r in chosen.tolist()}
    assert not both
    assert len({tuple(r) for r in chosen.tolist()}) == 16


def test_all_settings_share_one_structure():
    grid = BlockGrid(2, ("a", "b"), np.ones((2, 2)), num_steps=6)
    first = policy_of(Setting(), grid, quantized=True)
    second = policy_of(
        Setting(route=1, threshold=0.1, tau=0.3, random_seed=4, outlier_ratio=9.0),
        grid,
        quantized=True,
    )
    assert first.plan == second.plan
    assert first.update == second.update
    assert first[3:] == second[3:]


def test_assignment_meets_the_bits_and_takes_the_largest_errors():
    macs = np.array([[3.0, 1.0], [3.0, 1.0]])
    grid = BlockGrid(2, ("a", "b"), macs)
    error = np.array([[0.4, 0.1], [0.3, 0.2]])
    routes = assign(error, grid, 5.5)
    np.testing.assert_array_equal(routes, [[1, 0], [0, 0]])
    assert activation_bits(routes, np.zeros(2, bool), grid) == 5.5


def test_correlation_of_a_signal_that_is_the_error():
    rng = np.random.default_rng(0)
    gamma = rng.uniform(1, 2, (3, 5, 2, 2)).astype(np.float32)
    error = np.zeros((3, 5, 2, 2, 1), np.float32)
    error[:, 1:, ..., 0] = 0.5 * gamma[:, :-1] + 0.1
    zeros = np.zeros_like(gamma)
    recording = Recording(error, np.ones_like(error), gamma, zeros, zeros[..., 0, 0])
    found = correlations(recording, ["site"])[0]
    assert found["signal"] == "gamma"
    for name in ("r_pooled", "r_within_block", "r_within_step", "r2_fit"):
        assert found[name] == pytest.approx(1, abs=1e-4)


def test_span_ignores_what_is_not_a_positive_number():
    assert span_of(np.array([np.inf, np.nan, 0.0, 0.5, 2.0]), high=2.0) == (0.5, 4.0)


def test_missing_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a directory"):
        quality.load_model(str(tmp_path / "nothing"))


def test_every_comparison_names_rows():
    known = {"full_precision", *ROWS}
    for left, right, _ in COMPARISONS:
        assert {left, right} <= known
