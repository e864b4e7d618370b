"""DMPQ: routes from the previous step's gamma."""

import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.policies import ErrorPredictor, dmpq
from sixbit_jax.routes import Route
from tests.sixbit_jax.policies.driving import SITES, at, drive, grid, measured, start

NVFP4, INT8 = Route.NVFP4, Route.INT8


def predictor(alpha=1.0, beta=0.0, blocks=3, sites=SITES) -> ErrorPredictor:
    shape = (blocks, len(sites))
    return ErrorPredictor(sites, np.full(shape, alpha), np.full(shape, beta))


def routes_after(policy, **fields) -> np.ndarray:
    state = policy.init(grid())
    plan = policy.plan(state, at(0), start())
    state = policy.update(state, plan, measured(plan, **fields))
    return np.asarray(policy.plan(state, at(1), start()).route)


def test_the_first_step_runs_in_int8():
    plans, _ = drive(dmpq(predictor(alpha=0.0), 1.0), 1)
    assert (np.asarray(plans[0].route) == INT8).all()


def test_a_block_with_a_small_predicted_error_runs_in_nvfp4():
    route = routes_after(dmpq(predictor(), 0.2), gamma=[0.1, 0.2, 0.3])
    np.testing.assert_array_equal(route[:, 0], [NVFP4, NVFP4, INT8])
    assert (route == route[:, :1]).all()


def test_alpha_and_beta_are_per_block_and_site():
    alpha = np.arange(12).reshape(3, 4) / 10
    beta = np.full((3, 4), 0.05)
    route = routes_after(dmpq(ErrorPredictor(SITES, alpha, beta), 0.3), gamma=0.5)
    np.testing.assert_array_equal(route == INT8, alpha * 0.5 + beta > 0.3)


def test_the_threshold_may_differ_per_site():
    limits = {"attn_in": 0.0, "attn_out": 1.0, "ff_in": 0.0, "ff_mid": 1.0}
    route = routes_after(dmpq(predictor(), limits), gamma=0.5)
    np.testing.assert_array_equal(route, [[INT8, NVFP4, INT8, NVFP4]] * 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 1.0])
def test_a_route_never_comes_from_a_gamma_that_is_not_finite(bad, alpha):
    route = routes_after(dmpq(predictor(alpha), 1.0), gamma=[0.1, bad, 0.1])
    assert (route[1] == INT8).all()
    assert (route[[0, 2]] == NVFP4).all()


@pytest.mark.parametrize(("hold", "expected"), [(True, NVFP4), (False, INT8)])
def test_after_a_skip_the_last_gamma_is_held_or_int8_is_used(hold, expected):
    policy = dmpq(predictor(), 0.2, hold_gamma=hold)
    state = policy.init(grid())
    plan = start()
    state = policy.update(state, plan, measured(plan, gamma=0.1))
    skipped = plan._replace(skip=jnp.array([True, False, False]))
    state = policy.update(state, skipped, measured(skipped, gamma=0.1))
    route = np.asarray(policy.plan(state, at(2), start()).route)
    assert (route[0] == expected).all()
    assert (route[1:] == NVFP4).all()


def test_sites_are_matched_by_name():
    alpha = np.array([[0.0, 9.0, 0.0, 0.0]] * 3)
    shuffled = ErrorPredictor(
        ("ff_mid", "attn_in", "ff_in", "attn_out"), alpha, np.zeros((3, 4))
    )
    route = routes_after(dmpq(shuffled, 0.2), gamma=0.1)
    np.testing.assert_array_equal(route, [[INT8, NVFP4, NVFP4, NVFP4]] * 3)


def test_a_predictor_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"\['ff_mid'\] of the model are missing"):
        dmpq(predictor(sites=SITES[:3]), 0.1).init(grid())
    with pytest.raises(ValueError, match="model has 3 blocks, the predictor 5"):
        dmpq(predictor(blocks=5), 0.1).init(grid())
    with pytest.raises(ValueError, match=r"missing.*; .*predictor 5"):
        dmpq(predictor(blocks=5, sites=SITES[1:]), 0.1).init(grid())


def test_a_predictor_of_nan_is_refused():
    alpha = np.zeros((3, 4))
    alpha[2, 1] = np.nan
    with pytest.raises(ValueError, match="nan in block 2, site attn_out"):
        ErrorPredictor(SITES, alpha, np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        ErrorPredictor(SITES, np.zeros((3, 3)), np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 4\)"):
        ErrorPredictor(SITES, np.zeros((3, 4)), np.zeros((2, 4)))


@pytest.mark.parametrize("threshold", [-0.1, np.nan, np.inf, "high", {"ff_in": -1.0}])
def test_thresholds_out_of_range_are_refused(threshold):
    with pytest.raises(ValueError, match="dmpq: threshold"):
        dmpq(predictor(), threshold)


def test_a_site_without_threshold_is_refused():
    with pytest.raises(ValueError, match="no threshold for the sites"):
        dmpq(predictor(), {"attn_in": 0.1}).init(grid())


def test_another_stable_route_takes_the_place_of_nvfp4():
    policy = dmpq(predictor(), 0.2, stable_route=INT8)
    assert policy.routes == (INT8,)
    assert (routes_after(policy, gamma=[0.1, 0.2, 0.3]) == INT8).all()
    other = dmpq(predictor(), 0.2, stable_route=Route.BF16)
    route = routes_after(other, gamma=[0.1, 0.2, 0.3])
    np.testing.assert_array_equal(route[:, 0], [Route.BF16, Route.BF16, INT8])
