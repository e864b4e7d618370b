"""Blocks that are skipped together share one delta."""

import numpy as np
import pytest

from sixbit_jax.measured import NO_CHANGE
from sixbit_jax.models.network import BlockStack
from sixbit_jax.policies import chain, fixed, pdr, step_cache, tdc
from sixbit_jax.sampling.grid import cache_layout
from tests.sixbit_jax.models.small import small_model
from tests.sixbit_jax.sampling.test_sample import WIDE, prepared, run


@pytest.fixture(scope="module")
def model():
    return small_model(**WIDE | {"num_layers": 4})


def skipping(group: int | None, *blocks: int):
    """Skips blocks in steps 2 and 3 of 5."""
    skip = np.zeros((5, 4), bool)
    skip[2:4, list(blocks)] = True
    return fixed(skip=skip)._replace(group=group, skips=True)


@pytest.mark.parametrize(
    ("group", "blocks"), [(2, (0, 1, 2, 3)), (2, (2, 3)), (None, (0, 1, 2, 3))]
)
def test_a_shared_delta_is_the_sum_of_the_blocks_own(model, group, blocks):
    options = {"num_steps": 5, "cache_format": "float32"}
    own = run(model, policy=skipping(1, *blocks), **options)
    shared = run(model, policy=skipping(group, *blocks), **options)
    np.testing.assert_array_equal(own.trace.skip, shared.trace.skip)
    assert own.trace.skip.any()
    np.testing.assert_allclose(shared.latents, own.latents, atol=1e-4)
    computed = ~np.asarray(own.trace.skip)
    np.testing.assert_allclose(
        np.asarray(shared.trace.gamma)[computed],
        np.asarray(own.trace.gamma)[computed],
        rtol=1e-3,
    )


def test_a_group_is_skipped_only_as_a_whole(model):
    found = run(model, policy=skipping(2, 1, 2, 3), num_steps=5)
    np.testing.assert_array_equal(
        np.asarray(found.trace.skip)[2, 0], [False, False, True, True]
    )


def test_change_of_the_shared_delta_is_what_its_blocks_report(model):
    found = run(model, policy=skipping(None), num_steps=5, cache_format="float32")
    change = np.asarray(found.trace.delta_change)
    assert (change[0] == np.float32(NO_CHANGE)).all()
    assert (change[1:] > 0).all()
    np.testing.assert_array_equal(change, change[..., :1].repeat(4, -1))


@pytest.mark.parametrize(
    ("policy", "group"),
    [
        (tdc(0.1), 1),
        (tdc(0.1, together=2), 2),
        (tdc(0.1, together=None), None),
        (tdc(0.1, together=2, blocks=[0, 1]), 1),
        (step_cache(0.1), None),
        (chain(tdc(0.1, together=2), step_cache(0.1), pdr()), 2),
        (chain(tdc(0.1), step_cache(0.1)), 1),
        (chain(pdr()), 1),
    ],
)
def test_policies_say_which_blocks_they_skip_together(policy, group):
    assert policy.group == group


@pytest.mark.parametrize(
    ("together", "blocks", "slots"), [(None, 42, 1), (3, 42, 14), (4, 42, 42)]
)
def test_slots_are_as_many_as_groups_that_come_out_even(together, blocks, slots):
    stack = BlockStack("blocks", blocks, ("attn_in",), (1.0,))
    layout = cache_layout(tdc(0.1, together=together), (stack,), "bf16")
    assert layout.num_slots == slots


def test_the_cache_of_a_whole_step_is_one_delta_per_branch(model):
    program = prepared(model, policy=tdc(0.1, together=None)).program
    assert program.layout.num_slots == 1
