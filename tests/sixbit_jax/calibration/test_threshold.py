"""What DMPQ predicts on recorded runs, and the static baseline."""

import numpy as np
import pytest

from sixbit_jax.calibration import best_static_routes, predicted_errors
from sixbit_jax.policies import BlockGrid, ErrorPredictor, activation_bits
from sixbit_jax.routes import Route
from tests.sixbit_jax.calibration.runs import BLOCKS, SITES, recording


def grid() -> BlockGrid:
    return BlockGrid(BLOCKS, SITES, np.tile([3.0, 1.0, 4.0, 4.0], (BLOCKS, 1)))


def test_a_predictor_of_another_model_is_refused():
    other = ErrorPredictor(SITES, np.zeros((5, 4)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="model has 3 blocks, the predictor 5"):
        predicted_errors(recording(), other, grid())


def test_the_static_baseline_raises_the_worst_sites_at_equal_bits():
    runs = recording()
    route = best_static_routes(runs, grid(), target_bits=6.0)
    bits = activation_bits(route, np.zeros(BLOCKS, bool), grid())
    assert bits == pytest.approx(6.0, abs=0.25)
    mean = runs.error.mean((0, 1, 2))
    assert mean[route == Route.INT8].min() >= mean[route == Route.NVFP4].max()
    per_mac = best_static_routes(runs, grid(), per_mac=True)
    ratio = mean / grid().macs
    assert ratio[per_mac == 1].min() >= ratio[per_mac == 0].max()


def test_the_static_baseline_needs_errors():
    runs = recording()
    runs.error[..., 0, 0] = np.nan
    with pytest.raises(ValueError, match="no recorded error"):
        best_static_routes(runs, grid())
