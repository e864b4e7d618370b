"""Baselines: alternate, random routes, the step cache."""

import numpy as np
import pytest

from sixbit_jax.policies import (
    activation_bits,
    alternate,
    random_routes,
    step_cache,
    uniform_skips,
)
from tests.sixbit_jax.policies.driving import drive, grid, routes, skips


def test_alternate_by_step_is_int8_first_and_six_bits_on_average():
    plans, _ = drive(alternate(), 4)
    table = routes(plans)
    np.testing.assert_array_equal(table[:, 0, 0], [1, 0, 1, 0])
    assert (table == table[:, :1, :1]).all()
    assert activation_bits(table, skips(plans), grid()) == 6.0


def test_alternate_by_block():
    plans, _ = drive(alternate("block"), 2)
    np.testing.assert_array_equal(routes(plans)[:, :, 0], [[1, 0, 1]] * 2)


def test_alternate_refuses_other_orders():
    with pytest.raises(ValueError, match="found 'site'"):
        alternate("site")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_random_routes_meet_the_share_by_macs_at_every_step(share):
    plans, _ = drive(random_routes(3, share), 6, num_blocks=20)
    for table in routes(plans):
        bits = activation_bits(table, np.zeros(20, bool), grid(20))
        # one site of 4 of 240 units of work, half of it either way
        assert bits == pytest.approx(4 + 4 * share, abs=4 * 4 / 240 / 2 + 1e-6)


def test_random_routes_differ_by_step_branch_and_seed_and_repeat():
    def table(seed=0, branch=0):
        return routes(drive(random_routes(seed, 0.5), 3, branch=branch)[0])

    np.testing.assert_array_equal(table(), table())
    assert (table()[0] != table()[1]).any()
    assert (table() != table(seed=1)).any()
    assert (table() != table(branch=1)).any()


def test_random_routes_refuse_numbers_out_of_range():
    with pytest.raises(ValueError, match=r"share must be within \[0.0, 1.0\]"):
        random_routes(0, 1.1)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        random_routes(-1, 0.5)


def run_cache(policy, count=12, output=0.1, latents=0.05):
    steps = [{"output_change": np.inf}] + [{"output_change": output}] * (count - 1)
    plans, state = drive(policy, steps, latent_change=lambda i: latents if i else 0.0)
    assert (skips(plans) == skips(plans)[:, :1]).all(), "whole steps only"
    return "".join("01"[int(s)] for s in skips(plans)[:, 0]), plans, state


def test_step_cache_accumulates_the_expected_change():
    # k = 2, expected 0.1 per step: 0.1, 0.2 below 0.25, 0.3 not
    pattern, plans, _ = run_cache(step_cache(0.25))
    assert pattern == "001101101100"
    refresh = [bool(p.refresh[0]) for p in plans]
    assert [i for i, r in enumerate(refresh) if r] == [4, 7, 10]


def test_step_cache_predicts_with_the_latest_latent_change():
    changes = [0.0, 0.05, 0.05, 0.5, 0.05, 0.05, 0.05, 0.05]
    steps = [{"output_change": np.inf}] + [{"output_change": 0.1}] * 7
    plans, _ = drive(step_cache(0.25), steps, latent_change=lambda i: changes[i])
    # step 3: 0.1 + 2 * 0.5 is too much; there k becomes 0.2
    assert "".join("01"[int(s)] for s in skips(plans)[:, 0]) == "00101110"


def test_step_cache_respects_max_skips_warmup_and_the_last_step():
    assert run_cache(step_cache(100.0, max_skips=2))[0] == "001101101100"
    assert run_cache(step_cache(100.0, max_skips=9, warmup=4))[0] == "000011111110"
    assert run_cache(step_cache(100.0), count=2)[0] == "00"


def test_step_cache_falls_back_on_the_last_output_change():
    assert run_cache(step_cache(0.25), latents=0.0)[0] == "001101101100"
    assert run_cache(step_cache(0.25), latents=np.nan)[0] == "001101101100"


def test_step_cache_never_skips_from_nan():
    assert run_cache(step_cache(1e9), output=np.nan)[0] == "0" * 12
    assert run_cache(step_cache(1e9), output=np.inf)[0] == "0" * 12


@pytest.mark.parametrize(
    ("threshold", "options"),
    [
        (-1.0, {}),
        (np.nan, {}),
        (np.inf, {}),
        (0.1, {"max_skips": 0}),
        (0.1, {"warmup": 1}),
    ],
)
def test_step_cache_refuses_numbers_out_of_range(threshold, options):
    with pytest.raises(ValueError, match="step_cache: "):
        step_cache(threshold, **options)


@pytest.mark.parametrize("count", [10, 30, 50])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.5])
def test_uniform_skips_meet_the_fraction(count, fraction):
    skip = uniform_skips(count, fraction)
    assert skip.sum() == round(fraction * count)
    assert not skip[:2].any()
    assert not skip[-1]
    positions = np.flatnonzero(skip)
    if len(positions) > 1:
        assert np.ptp(np.diff(positions)) <= 1


def test_uniform_skips_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="9 of 10 steps cannot be skipped"):
        uniform_skips(10, 0.9)
    with pytest.raises(ValueError, match="at most 1 in a row"):
        uniform_skips(50, 0.6, max_skips=1)
    with pytest.raises(ValueError, match="fraction"):
        uniform_skips(50, 1.5)
