"""8-bit attention in stable blocks."""

import math

import numpy as np
import pytest

from sixbit_jax.policies import chain, fixed, int8_attention, tdc
from sixbit_jax.routes import Route
from tests.sixbit_jax.policies.driving import drive, grid


def chosen(plans) -> np.ndarray:
    return np.array([plan.int8_scores for plan in plans])


def test_blocks_whose_last_gamma_was_small_are_quantized():
    steps = [{"gamma": [0.1, 0.3, 0.2]}, {"gamma": [0.3, 0.1, 0.2]}, {}]
    plans, _ = drive(int8_attention(0.2), steps)
    expected = [[False, False, False], [True, False, True], [False, True, True]]
    np.testing.assert_array_equal(chosen(plans), expected)


def test_a_skipped_step_leaves_the_last_gamma():
    skip = np.zeros((3, 3), bool)
    skip[1, 0] = True
    steps = [{"gamma": [0.1, 0.3, 0.3]}, {"gamma": [9.0, 0.3, 0.3]}, {}]
    plans, _ = drive(chain(fixed(skip=skip), int8_attention(0.2)), steps)
    np.testing.assert_array_equal(chosen(plans)[:, 0], [False, True, True])


def test_without_a_limit_the_listed_blocks_are_quantized_from_the_first_step():
    plans, _ = drive(int8_attention(blocks=[2, 0]), 2)
    np.testing.assert_array_equal(chosen(plans), [[True, False, True]] * 2)


def test_it_adds_to_the_plan_and_says_so():
    policy = chain(fixed(route=Route.INT8), tdc(0.1), int8_attention(0.2))
    assert policy.attention
    assert not chain(fixed(route=Route.INT8), tdc(0.1)).attention
    both = chain(int8_attention(blocks=[0]), int8_attention(blocks=[1]))
    plans, _ = drive(both, 1)
    np.testing.assert_array_equal(chosen(plans), [[True, True, False]])


def test_policies_that_differ_in_the_limit_share_a_program():
    first, second = int8_attention(0.1), int8_attention(0.2, blocks=[1])
    assert (first.plan, first.update) == (second.plan, second.update)
    assert int8_attention(0.1) == int8_attention(0.1)


@pytest.mark.parametrize("limit", [-0.1, math.nan])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(ValueError, match="max_gamma"):
        int8_attention(limit)


def test_a_block_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"\[7\]"):
        int8_attention(blocks=[0, 7]).init(grid())
