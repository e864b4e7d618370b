"""Values that stand for what was not measured, and recordings of earlier versions."""

import numpy as np

from sixbit_jax.measured import NO_CHANGE, NOT_MEASURED, known


def test_readers_see_nan_for_what_was_not_measured_or_compared():
    values = np.float32([0.0, 0.5, NOT_MEASURED, NO_CHANGE, np.nan, np.inf])
    found = known(values)
    np.testing.assert_array_equal(found[:2], values[:2])
    assert np.isnan(found[2:]).all()


def test_a_mean_over_branches_of_which_one_compares_with_nothing_is_none():
    assert np.isnan(known((0.1 + NO_CHANGE) / 2))
