"""`delta_gbs`: the accumulated output change decides the bits of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.policies import chain, delta_gbs, fixed, pdr, step_cache, tdc
from sixbit_jax.routes import Route
from tests.sixbit_jax.policies.driving import (
    at,
    drive,
    grid,
    measured,
    routes,
    skips,
    start,
)


def changes(*values: float) -> list[dict]:
    """Steps that measure these output changes."""
    return [{"output_change": value} for value in values]


def bits(plans: list) -> list[int]:
    """Bits of each step, which must be the same at all blocks and sites."""
    found = routes(plans)
    assert (found == found[:, :1, :1]).all()
    return [Route(int(route)).bits for route in found[:, 0, 0]]


def test_four_bits_until_the_sum_reaches_delta():
    # after step 1 (8 bits, reset) the sums are .03 .06 .10 | .02 .04 ...
    plans, _ = drive(
        delta_gbs(0.09), changes(np.inf, 0.03, 0.03, 0.04, 0.02, 0.02, 0.0)
    )
    assert bits(plans) == [8, 8, 4, 4, 8, 4, 4]


def test_the_sum_at_the_threshold_is_eight_bits():
    plans, _ = drive(delta_gbs(0.5), changes(np.inf, 0.25, 0.25, 0.0, 0.0))
    assert bits(plans) == [8, 8, 4, 8, 4]


def test_large_changes_keep_eight_bits_and_delta_is_009_by_default():
    plans, _ = drive(delta_gbs(), changes(np.inf, 0.3, 0.2, 0.089, 0.0, 0.002, 0.0))
    assert bits(plans) == [8, 8, 8, 8, 4, 4, 8]


@pytest.mark.parametrize(
    ("delta", "expected"), [(0.0, [8] * 5), (np.inf, [8, 8, 4, 4, 4])]
)
def test_the_extremes(delta, expected):
    plans, _ = drive(delta_gbs(delta), changes(np.inf, 0.0, 0.1, 0.0, 3.0))
    assert bits(plans) == expected


def test_a_change_that_is_not_a_number_counts_as_large():
    plans, _ = drive(delta_gbs(1.0), changes(np.inf, 0.1, np.nan, 0.1, 0.1))
    assert bits(plans) == [8, 8, 4, 8, 4]


def test_a_larger_delta_never_needs_more_eight_bit_steps():
    rng = np.random.default_rng(0)
    steps = changes(np.inf, *rng.uniform(0, 0.1, 30))
    counts = [
        bits(drive(delta_gbs(d), steps)[0]).count(8) for d in (0.0, 0.05, 0.1, 0.2, 1.0)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 31
    assert counts[-1] < 6


def test_a_step_that_was_skipped_altogether_resets_nothing():
    skip = [False, True, True, False, False]
    policy = chain(delta_gbs(0.5), fixed(skip=skip))
    plans, _ = drive(policy, changes(np.inf, 0.2, 0.2, 0.2, 0.2))
    assert skips(plans).all(1).tolist() == skip
    # the two skipped steps leave the reset to the fourth
    assert bits(plans) == [8, 8, 8, 8, 4]


def test_it_composes_with_caches_and_the_refresh_rules():
    steps = [
        {"gamma": 0.1, "delta_change": 0.01, "output_change": change}
        for change in (np.inf, 0.02, 0.02, 0.02, 0.02, 0.02)
    ]
    plans, _ = drive(chain(delta_gbs(0.05), tdc(0.05), pdr()), steps)
    assert skips(plans).any()
    # a block that returns from skipping runs in INT8 whatever delta-GBS says
    refreshed = np.array([plan.refresh for plan in plans])
    assert refreshed.any()
    assert (routes(plans)[refreshed] == Route.INT8).all()
    plans, _ = drive(
        chain(delta_gbs(0.05), step_cache(0.05)), steps, latent_change=lambda _: 0.1
    )
    assert skips(plans).any()
    assert {4, 8} == set(bits(plans))


def test_static_facts_and_equality():
    policy = delta_gbs(0.1)
    assert policy.routes == (Route.NVFP4, Route.INT8)
    assert policy.skips is False
    assert not policy.outlier_rule
    assert policy == delta_gbs(0.1)
    assert hash(policy) == hash(delta_gbs(0.1))
    assert policy != delta_gbs(0.2)
    # other numbers share the compiled functions
    assert policy[1:] == delta_gbs(0.2)[1:]


def test_a_scan_gives_the_plans_of_the_step_by_step_run():
    policy = delta_gbs(0.15)
    moves = np.random.default_rng(1).uniform(0, 0.1, 12).astype(np.float32)
    moves[0] = np.inf
    eager, _ = drive(policy, changes(*moves))

    @jax.jit
    def run(state, xs):
        def body(state, x):
            index, change = x
            plan = policy.plan(state, at(0)._replace(index=index), start())
            stats = measured(plan, output_change=change)
            return policy.update(state, plan, stats), plan

        return jax.lax.scan(body, state, xs)[1]

    scanned = run(policy.init(grid()), (jnp.arange(12), moves))
    np.testing.assert_array_equal(scanned.route, routes(eager))
    assert scanned.route.dtype == jnp.int32


@pytest.mark.parametrize("delta", [-0.1, np.nan, "much"])
def test_other_deltas_are_refused(delta):
    with pytest.raises(ValueError, match="delta_gbs: delta must be"):
        delta_gbs(delta)


def test_the_two_routes_may_be_those_of_dvd_quant():
    policy = delta_gbs(1.0, low=Route.ARQ4, high=Route.ARQ8)
    assert policy.routes == (Route.ARQ4, Route.ARQ8)
    plans, _ = drive(policy, changes(np.inf, 0.1, 0.1, 0.1))
    expected = [Route.ARQ8, Route.ARQ8, Route.ARQ4, Route.ARQ4]
    assert routes(plans)[:, 0, 0].tolist() == expected
