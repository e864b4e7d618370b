"""PDR: routes of blocks that write the cache."""

import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.measured import NO_LIMIT
from sixbit_jax.policies import chain, fixed, pdr, tdc
from sixbit_jax.routes import Route
from tests.sixbit_jax.policies.driving import at, drive, grid, routes, skips, start


def refreshing(route=Route.NVFP4):
    """Block 0 is skipped, block 1 returns from skipping, block 2 is neither."""
    plan = start()
    return plan._replace(
        skip=jnp.array([True, False, False]),
        refresh=jnp.array([False, True, False]),
        route=jnp.full_like(plan.route, route),
    )


def planned(policy, plan):
    return policy.plan(policy.init(grid()), at(5), plan)


def test_rule_b_a_refreshed_block_runs_in_int8_at_every_site():
    route = np.asarray(planned(pdr(), refreshing()).route)
    assert (route[1] == Route.INT8).all()
    assert (route[[0, 2]] == Route.NVFP4).all()


def test_rule_b_never_lowers_a_precision():
    route = planned(pdr(), refreshing(Route.BF16)).route
    assert (np.asarray(route) == Route.BF16).all()


def test_rule_a_limits_outliers_of_refreshed_blocks():
    limit = planned(pdr(25.0), refreshing()).outlier_limit
    np.testing.assert_array_equal(limit, np.float32([NO_LIMIT, 25.0, NO_LIMIT]))


def test_rule_a_may_hold_at_every_compute():
    limit = planned(pdr(25.0, scope="every_compute"), refreshing()).outlier_limit
    np.testing.assert_array_equal(limit, np.float32([NO_LIMIT, 25.0, 25.0]))


def test_a_stricter_limit_of_another_policy_stays():
    plan = refreshing()._replace(outlier_limit=jnp.array([3.0, 3.0, 90.0]))
    limit = planned(pdr(25.0, scope="every_compute"), plan).outlier_limit
    np.testing.assert_array_equal(limit, [3.0, 3.0, 25.0])


def test_each_rule_has_its_switch():
    without_a = pdr(None)
    assert not without_a.outlier_rule
    plan = planned(without_a, refreshing())
    assert (plan.outlier_limit == np.float32(NO_LIMIT)).all()
    assert (np.asarray(plan.route)[1] == Route.INT8).all()
    without_b = planned(pdr(refresh_int8=False), refreshing())
    assert (np.asarray(without_b.route) == Route.NVFP4).all()
    assert pdr().outlier_rule


def test_skips_are_left_alone():
    plan = planned(pdr(), refreshing())
    np.testing.assert_array_equal(plan.skip, refreshing().skip)
    assert pdr().skips is False


def test_after_tdc_exactly_the_returning_blocks_are_raised():
    policy = chain(fixed(route=Route.NVFP4), tdc(100.0), pdr())
    steps = [{"delta_change": np.inf}] + [{"delta_change": 0.1}] * 9
    plans, _ = drive(policy, steps)
    skipped = skips(plans)
    raised = (routes(plans) == Route.INT8).all(-1)
    np.testing.assert_array_equal(raised[1:], skipped[:-1] & ~skipped[1:])
    assert raised.any()
    for plan, high in zip(plans, raised, strict=True):
        np.testing.assert_array_equal(plan.outlier_limit < NO_LIMIT, high)


@pytest.mark.parametrize("ratio", [0.5, np.nan, -1.0, "x"])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match="pdr: outlier_ratio"):
        pdr(ratio)


def test_an_unknown_scope_is_refused():
    with pytest.raises(ValueError, match=r"scope must be .* found 'always'"):
        pdr(scope="always")


@pytest.mark.parametrize("route", [Route.INT4, Route.INT6, Route.ARQ4])
def test_rule_b_raises_every_narrow_route_and_no_other(route):
    assert (np.asarray(planned(pdr(), refreshing(route)).route)[1] == Route.INT8).all()
    wide = planned(pdr(), refreshing(Route.ARQ8)).route
    assert (np.asarray(wide) == Route.ARQ8).all()
