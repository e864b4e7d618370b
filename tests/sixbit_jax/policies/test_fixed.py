"""`fixed`: static plans."""

import numpy as np
import pytest

from sixbit_jax.policies import fixed
from sixbit_jax.routes import Route
from tests.sixbit_jax.policies.driving import at, drive, grid, routes, skips, start


@pytest.mark.parametrize("route", list(Route))
def test_one_route_everywhere(route):
    policy = fixed(route=route)
    assert policy.routes == (route,)
    plans, _ = drive(policy, 3)
    assert (routes(plans) == route).all()
    assert not skips(plans).any()
    assert policy.skips is False


def test_routes_per_block_and_site_and_per_step():
    rng = np.random.default_rng(0)
    table = rng.integers(0, 2, (4, 3, 4))
    plans, _ = drive(fixed(route=table), 4)
    np.testing.assert_array_equal(routes(plans), table)
    plans, _ = drive(fixed(route=table[0]), 2)
    np.testing.assert_array_equal(routes(plans), [table[0]] * 2)
    assert fixed(route=table).routes == (Route.NVFP4, Route.INT8)


def test_skips_per_block_and_their_refresh():
    skip = np.zeros((5, 3), bool)
    skip[2:4, 1] = True
    policy = fixed(skip=skip)
    assert policy.skips == (1,)
    plans, _ = drive(policy, 5)
    np.testing.assert_array_equal(skips(plans), skip)
    refresh = np.array([p.refresh for p in plans])
    assert np.argwhere(refresh).tolist() == [[4, 1]]


def test_whole_steps_are_skipped():
    policy = fixed(skip=[False, True, False])
    assert policy.skips is True
    plans, _ = drive(policy, 3)
    np.testing.assert_array_equal(skips(plans), [[False] * 3, [True] * 3, [False] * 3])


def test_routes_are_left_alone_without_a_route():
    plans, _ = drive(fixed(skip=[0, 1]), 2)
    assert (routes(plans) == Route.BF16).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": [True, False]}, "first step cannot be skipped"),
        ({"skip": np.zeros((2, 2, 2))}, r"found shape \(2, 2, 2\)"),
        ({"skip": []}, r"found shape \(0,\)"),
        ({"route": 99}, r"values \[99\]"),
        ({"route": [1, 0]}, r"found shape \(2,\)"),
        (
            {"skip": [0, 1], "route": np.ones((3, 3, 4), int)},
            "skip has 2 steps and route has 3",
        ),
    ],
)
def test_what_is_no_plan_is_refused(options, message):
    with pytest.raises(ValueError, match=f"fixed: .*{message}"):
        fixed(**options)


def test_a_plan_of_another_model_or_run_is_refused():
    with pytest.raises(ValueError, match="for 5 blocks, the model has 3"):
        fixed(skip=np.zeros((4, 5), bool)).init(grid())
    with pytest.raises(ValueError, match=r"\(3, 2\) blocks and sites.*\(3, 4\)"):
        fixed(route=np.ones((3, 2), int)).init(grid())
    with pytest.raises(ValueError, match="plan has 2 steps, the sampler 50"):
        fixed(skip=[0, 1]).init(grid(num_steps=50))
    policy = fixed(skip=[0, 1])
    with pytest.raises(ValueError, match="plan has 2 steps, the sampler 50"):
        policy.plan(policy.init(grid()), at(0, 50), start())
