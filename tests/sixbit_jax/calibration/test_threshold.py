"""The threshold of DMPQ, and the static baseline."""

import numpy as np
import pytest

from sixbit_jax.calibration import (
    best_static_routes,
    find_threshold,
    fit_predictor,
    replay_routes,
)
from sixbit_jax.policies import (
    BlockGrid,
    ErrorPredictor,
    activation_bits,
    chain,
    dmpq,
    fixed,
    pdr,
)
from sixbit_jax.routes import Route
from tests.sixbit_jax.calibration.runs import BLOCKS, SITES, recording
from tests.sixbit_jax.policies.driving import drive, routes


def grid() -> BlockGrid:
    return BlockGrid(BLOCKS, SITES, np.tile([3.0, 1.0, 4.0, 4.0], (BLOCKS, 1)))


@pytest.mark.parametrize("skips", [0.0, 0.3])
def test_replay_gives_the_routes_of_the_policy(skips):
    runs = recording(runs=1, steps=8, noise=0.02, skips=skips)
    predictor = fit_predictor(runs, SITES).predictor
    replayed = replay_routes(runs, predictor, 0.15, grid())
    for branch in range(2):
        policy = chain(
            fixed(skip=runs.skip[0, :, branch]), dmpq(predictor, 0.15), pdr()
        )
        plans, _ = drive(policy, [{"gamma": g} for g in runs.gamma[0, :, branch]])
        np.testing.assert_array_equal(routes(plans), replayed[0, :, branch])


def test_replay_starts_in_int8_and_never_trusts_nan():
    runs = recording()
    runs.gamma[:, 4, :, 1] = np.nan
    route = replay_routes(runs, fit_predictor(runs, SITES).predictor, 99.0, grid())
    assert (route[:, 0] == Route.INT8).all()
    assert (route[:, 5, :, 1] == Route.INT8).all()
    assert (route[:, 5, :, [0, 2]] == Route.NVFP4).all()


@pytest.mark.parametrize("target", [5.5, 6.0, 7.5])
@pytest.mark.parametrize("skips", [0.0, 0.3])
def test_the_threshold_hits_the_target(target, skips):
    runs = recording(noise=0.01, skips=skips)
    predictor = fit_predictor(runs, SITES).predictor
    fit = find_threshold(runs, predictor, grid(), target_bits=target)
    assert fit.bits == pytest.approx(target, abs=0.02)
    route = replay_routes(runs, predictor, fit.threshold, grid())
    assert activation_bits(route, runs.skip, grid()) == fit.bits
    # the search is exact: no other threshold is nearer
    tried = np.linspace(0, 0.6, 400)
    others = [
        activation_bits(replay_routes(runs, predictor, t, grid()), runs.skip, grid())
        for t in tried[::8]
    ]
    assert abs(fit.bits - target) <= np.abs(np.array(others) - target).min() + 1e-9


def test_a_target_that_no_threshold_gives_is_refused():
    runs = recording(steps=3)  # a third of all steps is the first one, INT8
    predictor = fit_predictor(runs, SITES).predictor
    with pytest.raises(ValueError, match=r"range from 5\.33 to 8\.00"):
        find_threshold(runs, predictor, grid(), target_bits=4.5)
    with pytest.raises(ValueError, match=r"within .4, 8., found 16"):
        find_threshold(runs, predictor, grid(), target_bits=16)


def test_a_predictor_of_another_model_is_refused():
    other = ErrorPredictor(SITES, np.zeros((5, 4)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="model has 3 blocks, the predictor 5"):
        find_threshold(recording(), other, grid())


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
