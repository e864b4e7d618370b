"""`chain`: composition, equality, and policies inside a compiled scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.policies import (
    ErrorPredictor,
    Policy,
    alternate,
    chain,
    dmpq,
    fixed,
    pdr,
    random_routes,
    step_cache,
    tdc,
)
from sixbit_jax.routes import Route
from tests.sixbit_jax.policies.driving import (
    SITES,
    at,
    drive,
    grid,
    measured,
    routes,
    skips,
    start,
)


def predictor(slope: float = 1.0) -> ErrorPredictor:
    return ErrorPredictor(SITES, np.full((3, 4), slope), np.zeros((3, 4)))


def sixbit(tau=0.5, threshold=0.2, slope=1.0) -> Policy:
    return chain(dmpq(predictor(slope), threshold), tdc(tau), pdr())


def test_an_empty_chain_is_full_precision():
    policy = chain()
    assert (policy.routes, policy.skips, policy.outlier_rule) == ((), False, False)
    plans, _ = drive(policy, 3)
    for plan in plans:
        jax.tree.map(np.testing.assert_array_equal, plan, start())


def test_static_facts_are_joined():
    assert sixbit().routes == (Route.NVFP4, Route.INT8, Route.BF16)
    assert sixbit().skips is True
    assert sixbit().outlier_rule
    assert chain(dmpq(predictor(), 0.1)).routes == (Route.NVFP4, Route.INT8)
    some = chain(tdc(1.0, blocks=[2]), fixed(skip=[[0, 0, 0], [1, 0, 0]]))
    assert some.skips == (0, 2)
    assert chain(tdc(1.0, blocks=[2]), tdc(1.0)).skips is True
    assert chain(alternate()).skips is False


MAKERS = {
    "sixbit": sixbit,
    "fixed": lambda: fixed(skip=[0, 1, 0], route=np.ones((3, 4), int)),
    "random": lambda: chain(random_routes(1, 0.5)),
    "alternate": alternate,
    "step_cache": lambda: chain(step_cache(0.1)),
    "nested": lambda: chain(sixbit(), chain(step_cache(0.1))),
    "per_site": lambda: dmpq(predictor(), dict.fromkeys(SITES, 0.1)),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_equal_policies_are_equal_and_hash_equal(make):
    assert make() == make()
    assert hash(make()) == hash(make())


def test_other_numbers_share_the_compiled_functions():
    one, other = sixbit(0.5, 0.2, 1.0), sixbit(0.9, 0.4, 2.0)
    assert one != other
    assert one._replace(init=None) == other._replace(init=None)
    shapes = jax.tree.map(jnp.shape, (one.init(grid()), other.init(grid())))
    assert shapes[0] == shapes[1]


def test_later_policies_refine_the_plan_of_earlier_ones():
    plans, _ = drive(chain(fixed(route=Route.NVFP4), fixed(route=Route.INT8)), 1)
    assert (routes(plans) == Route.INT8).all()


def test_what_is_not_a_policy_is_refused():
    with pytest.raises(TypeError, match="position 1"):
        chain(tdc(0.1), 3)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_a_scan_gives_the_plans_of_the_step_by_step_run(make):
    policy, count = make(), 8
    rng = np.random.default_rng(0)
    gamma = rng.uniform(0, 0.4, (count, 3)).astype(np.float32)
    change = np.concatenate([np.full((1, 3), np.inf), gamma[1:]]).astype(np.float32)
    moves = rng.uniform(0.01, 0.2, count).astype(np.float32)
    steps = [
        {"gamma": g, "delta_change": c, "output_change": m}
        for g, c, m in zip(gamma, change, moves, strict=True)
    ]
    if make is MAKERS["fixed"]:
        count, steps = 3, steps[:3]
    eager, _ = drive(policy, steps, latent_change=lambda i: float(moves[i]))

    @jax.jit
    def run(state, xs):
        def body(state, x):
            index, g, c, m = x
            step = at(0, count, 0.0)._replace(index=index, latent_change=m)
            plan = policy.plan(state, step, start())
            stats = measured(
                plan, gamma=g, delta_change=c, output_change=m, latent_change=m
            )
            return policy.update(state, plan, stats), plan

        return jax.lax.scan(body, state, xs)[1]

    scanned = run(
        policy.init(grid()),
        (jnp.arange(count), gamma[:count], change[:count], moves[:count]),
    )
    np.testing.assert_array_equal(scanned.skip, skips(eager))
    np.testing.assert_array_equal(scanned.route, routes(eager))
    assert scanned.route.dtype == jnp.int32
    assert scanned.skip.dtype == bool
    assert scanned.outlier_limit.dtype == jnp.float32


def test_no_plan_comes_from_nan():
    nothing = {"gamma": np.nan, "delta_change": np.nan, "output_change": np.nan}
    plans, _ = drive(
        chain(sixbit(tau=1e9, threshold=1e9), step_cache(1e9)), [nothing] * 6
    )
    assert not skips(plans).any()
    assert (routes(plans) == Route.INT8).all()
