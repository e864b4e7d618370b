"""Sparse attention in stable blocks, after the first steps."""

import math

import numpy as np
import pytest

from sixbit_jax.policies import chain, fixed, int8_attention, sparse_attention, tdc
from sixbit_jax.sparsity import SparseWay
from tests.sixbit_jax.policies.driving import drive, grid


def chosen(plans) -> np.ndarray:
    return np.array([plan.sparse for plan in plans])


def test_first_steps_first_block_and_last_step_are_dense():
    policy = sparse_attention(0.5, dense_steps=0.4, dense_last=True)
    plans, _ = drive(policy, 5)
    expected = np.zeros((5, 3), bool)
    expected[2:4, 1:] = True
    np.testing.assert_array_equal(chosen(plans), expected)
    taus = np.array([plan.sparse_tau for plan in plans])
    np.testing.assert_array_equal(taus[expected], 0.5)


@pytest.mark.parametrize(
    ("share", "steps", "dense"), [(0.2, 50, 10), (0.1, 4, 0), (0.5, 3, 2), (1.0, 3, 3)]
)
def test_the_share_of_dense_steps_is_rounded_to_whole_ones(share, steps, dense):
    plans, _ = drive(sparse_attention(dense_steps=share), steps)
    np.testing.assert_array_equal(chosen(plans)[:, 1], np.arange(steps) >= dense)


def test_volatile_blocks_are_dense():
    policy = sparse_attention(max_gamma=0.2, dense_steps=0, dense_blocks=())
    steps = [{"gamma": [0.1, 0.3, 0.2]}, {"gamma": [0.3, 0.1, 0.2]}, {}]
    plans, _ = drive(policy, steps)
    expected = [[False, False, False], [True, False, True], [False, True, True]]
    np.testing.assert_array_equal(chosen(plans), expected)


def test_a_skipped_step_leaves_the_last_gamma():
    skip = np.zeros((3, 3), bool)
    skip[1, 1] = True
    policy = sparse_attention(max_gamma=0.2, dense_steps=0)
    steps = [{"gamma": [0.1, 0.1, 0.3]}, {"gamma": [9.0, 9.0, 0.3]}, {}]
    plans, _ = drive(chain(fixed(skip=skip), policy), steps)
    np.testing.assert_array_equal(chosen(plans)[:, 1], [False, True, True])


def test_policies_that_differ_in_numbers_share_a_program():
    first = sparse_attention(0.1)
    second = sparse_attention(
        -math.inf, dense_steps=0.5, dense_blocks=[1], dense_last=True, max_gamma=0.3
    )
    assert (first.plan, first.update) == (second.plan, second.update)
    assert first.sparse == second.sparse == SparseWay()
    states = [policy.init(grid()) for policy in (first, second)]
    assert all(np.isfinite(leaf).all() for state in states for leaf in state)
    assert sparse_attention(0.1) == sparse_attention(0.1)


def test_a_chain_keeps_the_way():
    way = sparse_attention(way="radial", width=0.5, approximate=False)
    policy = chain(tdc(0.1), way, int8_attention(0.2))
    assert policy.sparse == SparseWay("radial", approximate=False, width=0.5)
    assert chain(tdc(0.1)).sparse is None
    assert chain(way, way).sparse == way.sparse


def test_a_chain_of_two_ways_is_refused():
    with pytest.raises(ValueError, match=r"one way .*threshold.* and .*radial"):
        chain(sparse_attention(), sparse_attention(way="radial"))


def test_a_way_that_is_none_is_refused_with_all_problems():
    with pytest.raises(ValueError, match=r"(?s)'best'.*approximate.*width.*frames"):
        sparse_attention(way="best", approximate=1, width=0.0, frames=-1)  # pyrefly: ignore


@pytest.mark.parametrize(
    ("name", "value"),
    [("tau", math.nan), ("dense_steps", 1.5), ("max_gamma", -0.1)],
)
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        sparse_attention(**{name: value})


def test_a_block_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"\[7\]"):
        sparse_attention(dense_blocks=[0, 7]).init(grid())
