"""TDC: which blocks are skipped, and when they are not."""

import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.policies import tdc
from tests.sixbit_jax.policies.driving import at, drive, grid, measured, skips, start


def steady(change, steps=12) -> list[dict]:
    """A first step without an earlier delta, then the same change at every step."""
    return [{"delta_change": np.inf}] + [{"delta_change": change}] * (steps - 1)


def pattern(plans) -> str:
    """1 where block 0 is skipped."""
    return "".join("01"[int(skip)] for skip in skips(plans)[:, 0])


def test_never_before_two_computed_steps_and_at_most_max_skips_in_a_row():
    plans, _ = drive(tdc(100.0, max_skips=2), steady(0.1))
    assert pattern(plans) == "001101101100"


def test_the_last_step_is_computed():
    for steps in range(1, 9):
        plans, _ = drive(tdc(100.0, max_skips=5), steady(0.0, steps))
        assert not skips(plans)[-1].any()


@pytest.mark.parametrize("steps", [1, 2])
def test_one_or_two_steps_skip_nothing(steps):
    plans, _ = drive(tdc(100.0), steady(0.0, steps))
    assert not skips(plans).any()


def test_the_error_accumulates_over_skips_and_is_cleared_by_a_compute():
    # e = 0.4: one skip reaches 0.4 < 0.9, two 0.8 < 0.9, three 1.2
    plans, _ = drive(tdc(0.9, max_skips=10), steady(0.4))
    assert pattern(plans) == "001101101100"


def test_tau_is_a_strict_limit():
    # exactly representable: 0.5 + 0.5 is not below 1
    plans, _ = drive(tdc(1.0, max_skips=10), steady(0.5))
    assert pattern(plans) == "001010101010"


def test_tau_zero_skips_nothing():
    plans, _ = drive(tdc(0.0), steady(0.0))
    assert not skips(plans).any()


def test_every_block_decides_for_itself():
    plans, _ = drive(tdc(0.3), steady(np.array([0.1, 0.5, 0.2])))
    np.testing.assert_array_equal(skips(plans).any(0), [True, False, True])
    # 0.1 + 0.1 < 0.3 allows two in a row, 0.2 + 0.2 does not
    assert skips(plans)[:, 0].sum() > skips(plans)[:, 2].sum()


def test_the_change_is_that_of_the_last_computed_delta():
    steps = steady(0.1, 10)
    steps[4] = {"delta_change": 9.0}  # step 4 computes (2, 3 are skipped)
    plans, _ = drive(tdc(1.0, max_skips=2), steps)
    assert pattern(plans) == "0011001100"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_skip_never_comes_from_a_change_that_is_not_finite(bad):
    plans, _ = drive(tdc(1e30, max_skips=9), steady(np.array([0.1, bad, 0.1])))
    np.testing.assert_array_equal(skips(plans).any(0), [True, False, True])


def test_refresh_marks_the_first_compute_after_skips():
    plans, _ = drive(tdc(100.0), steady(0.1, 9))
    skipped = skips(plans)[:, 0]
    refresh = np.array([bool(p.refresh[0]) for p in plans])
    assert pattern(plans) == "001101100"
    np.testing.assert_array_equal(refresh[1:], skipped[:-1] & ~skipped[1:])
    assert not refresh[0]


def test_warmup_counts_computed_steps():
    plans, _ = drive(tdc(100.0, warmup=5), steady(0.1))
    assert skips(plans)[:, 0].argmax() == 5


def test_only_listed_blocks_are_skipped_and_cached():
    policy = tdc(100.0, blocks=[2, 0])
    assert policy.skips == (0, 2)
    plans, _ = drive(policy, steady(0.1))
    np.testing.assert_array_equal(skips(plans).any(0), [True, False, True])
    assert tdc(1.0).skips is True


def test_branches_have_their_own_state():
    policy = tdc(0.3)
    calm, _ = drive(policy, steady(0.1), branch=0)
    moving, _ = drive(policy, steady(0.9), branch=1)
    assert skips(calm).any()
    assert not skips(moving).any()


def test_a_skip_of_another_policy_counts_as_a_skip():
    policy = tdc(100.0, max_skips=1)
    state = policy.init(grid())._replace(
        change=jnp.full(3, 0.1), computed=jnp.full(3, 5)
    )
    forced = start()._replace(skip=jnp.array([True, False, False]))
    state = policy.update(state, forced, measured(forced, delta_change=0.1))
    plan = policy.plan(state, at(6), start())
    np.testing.assert_array_equal(plan.skip, [False, True, True])
    np.testing.assert_array_equal(plan.refresh, [True, False, False])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": -0.1}, r"tau must be finite and within \[0.0, inf\], found -0.1"),
        ({"tau": np.nan}, "tau"),
        ({"tau": np.inf}, "tau"),
        ({"tau": None}, "tau must be a number"),
        ({"tau": 0.1, "max_skips": 0}, "max_skips must be at least 1, found 0"),
        ({"tau": 0.1, "max_skips": 1.5}, "max_skips must be an integer, found 1.5"),
        ({"tau": 0.1, "warmup": 1}, "warmup must be at least 2"),
        ({"tau": 0.1, "blocks": [1, 1]}, "distinct"),
        ({"tau": 0.1, "blocks": [-1]}, "not negative"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=f"tdc: .*{message}"):
        tdc(options.pop("tau"), **options)


def test_a_block_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"blocks \[7\] do not exist.* has 3"):
        tdc(0.1, blocks=[0, 7]).init(grid())


def test_shared_decisions_use_the_mean_over_the_branches():
    steps = [
        {"delta_change": np.inf, "shared_change": np.inf},
        *[{"delta_change": np.array([0.1, 0.9]), "shared_change": 0.2}] * 11,
    ]
    own, _ = drive(tdc(0.3), steps, num_blocks=2)
    shared, _ = drive(tdc(0.3, shared=True), steps, num_blocks=2)
    np.testing.assert_array_equal(skips(own).any(0), [True, False])
    np.testing.assert_array_equal(skips(shared)[:, 0], skips(shared)[:, 1])
    assert skips(shared).any()
