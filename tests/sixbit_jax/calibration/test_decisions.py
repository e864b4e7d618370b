import numpy as np
import pytest

from sixbit_jax.calibration import Recording
from sixbit_jax.calibration.decisions import decisions
from sixbit_jax.policies import BlockGrid, ErrorPredictor, dmpq, full_precision_plan
from sixbit_jax.policies.base import StepIndex
from sixbit_jax.routes import Route
from tests.sixbit_jax.policies.driving import empty_stats
from tests.sixbit_jax.report.traces import SITES, make_trace

GRID = BlockGrid(3, SITES, np.ones((3, 4)))


@pytest.mark.parametrize("importance", [None, np.linspace(0.2, 2, 12).reshape(3, 4)])
@pytest.mark.parametrize("residual", [False, True])
def test_decisions_are_those_that_the_policy_makes(importance, residual):
    rng = np.random.default_rng(0)
    predictor = ErrorPredictor(SITES, *rng.uniform(0.1, 1.0, (2, 3, 4)))
    trace = make_trace(branches=1, steps=12)
    values = decisions(
        Recording.from_traces([trace]),
        predictor,
        GRID,
        importance=importance,
        residual=residual,
    ).predicted[0, :, 0]
    threshold = float(np.nanmedian(values))
    policy = dmpq(predictor, threshold, importance=importance, residual=residual)
    state = policy.init(GRID)
    for index in range(12):
        plan = policy.plan(state, StepIndex(index, 12, 0.0), full_precision_plan(3, 4))
        low = values[index] <= threshold
        expected = np.where(low, Route.NVFP4, Route.INT8)
        np.testing.assert_array_equal(plan.route, expected)
        stats = empty_stats(3, 4)._replace(
            computed=~trace.skip[index, 0], gamma=trace.gamma[index, 0]
        )
        state = policy.update(state, plan, stats)
    assert 0 < (values <= threshold).mean() < 1


def test_recorded_errors_get_the_same_factors():
    trace = make_trace(branches=1)
    trace = trace._replace(error=np.full(trace.error.shape, 0.1, np.float32))
    predictor = ErrorPredictor(SITES, np.ones((3, 4)), np.zeros((3, 4)))
    measured = decisions(
        Recording.from_traces([trace]), predictor, GRID, importance=np.full((3, 4), 2.0)
    ).measured
    np.testing.assert_allclose(measured, 0.2, rtol=1e-6)
