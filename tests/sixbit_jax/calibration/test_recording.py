import numpy as np
import pytest

from sixbit_jax.calibration import Recording
from sixbit_jax.calibration.runs import CalibrationRuns
from sixbit_jax.sampling.options import Conditions
from sixbit_jax.sampling.pair import LowNoise
from sixbit_jax.sampling.schedulers import UniPC


def recording(**changes) -> Recording:
    gamma = np.arange(5.0).reshape(1, 5, 1, 1) + 1
    error = np.zeros((1, 5, 1, 1, 2))
    return Recording(gamma, error, np.zeros((1, 5, 1, 1), bool))._replace(**changes)


def test_a_step_knows_what_the_last_computed_one_measured():
    skip = np.zeros((1, 5, 1, 1), bool)
    skip[0, 2] = True
    known = recording(skip=skip).known_gamma().reshape(-1)
    np.testing.assert_array_equal(known, [np.nan, 1, 2, 2, 4])


def test_nothing_is_known_where_the_second_network_takes_over():
    known = recording(starts=(3,)).checked().known_gamma().reshape(-1)
    np.testing.assert_array_equal(known, [np.nan, 1, 2, np.nan, 4])


@pytest.mark.parametrize(("boundary", "starts"), [(0.875, (2,)), (0.0, (4,))])
def test_the_runs_of_a_pair_say_where_that_is(boundary, starts):
    low = LowNoise(None, boundary)
    runs = CalibrationRuns(
        None,
        UniPC(flow_shift=3.0),
        np.zeros((1, 2, 3)),
        None,
        latent_shape=(1, 1, 1, 1),
        num_steps=4,
        conditions=Conditions(low_noise=low),
    )
    assert runs.starts == starts
