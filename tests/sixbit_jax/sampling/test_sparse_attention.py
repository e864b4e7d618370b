"""Sparse attention in the sampler: by the plan, in the trace, in one program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sixbit_jax
from sixbit_jax.policies import chain, fixed, int8_attention, sparse_attention
from sixbit_jax.routes import Route
from sixbit_jax.sampling.api import prepare, run_jitted
from sixbit_jax.sampling.options import Execution, Prompt
from sixbit_jax.sampling.schedulers import CogVideoXDDIM, UniPC
from tests.sixbit_jax.models import small, small_wan

# 1,152 video tokens: 9 or 10 blocks of 128 keys, tiles of 192 queries.
SHAPE = (8, 4, 24, 24)
STEPS = 3
LAYERS = 2
EVERYWHERE = {"dense_steps": 0.0, "dense_blocks": ()}
DENSE = -np.inf
SCHEDULERS = {"cogvideox": CogVideoXDDIM(), "wan": UniPC()}


def prompt():
    return Prompt(*jax.random.normal(jax.random.key(1), (2, 1, 6, 32)), as_given=True)


@pytest.fixture(scope="module")
def cogvideox():
    return small.small_model(num_layers=LAYERS, sample_width=24, sample_height=24)


@pytest.fixture(scope="module")
def wan():
    return small_wan.small_model(num_layers=LAYERS)


@pytest.fixture(params=["cogvideox", "wan"])
def network(request):
    return request.getfixturevalue(request.param), SCHEDULERS[request.param]


def prepared(network, policy, shape=SHAPE, **execution):
    model, scheduler = network
    return prepare(
        model,
        scheduler,
        prompt(),
        latent_shape=shape,
        num_steps=STEPS,
        policy=policy,
        execution=Execution(dtype=jnp.float32, **execution),
    )


def run(network, policy=None, **options):
    return jax.tree.map(np.asarray, run_jitted(*prepared(network, policy, **options)))


def difference(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_all_blocks_of_keys_are_dense_attention(network):
    dense = run(network)
    every = run(network, sparse_attention(DENSE, **EVERYWHERE))
    assert (every.trace.attention_density == 1.0).all()
    assert difference(every.latents, dense.latents) < 1e-5


def test_what_was_negligible_stays_skipped(network):
    # A limit that most blocks are below, and one that none is.
    some = sparse_attention(-1.0, way="history", blocks=(64, 32), **EVERYWHERE)
    trace = run(network, some).trace
    density = trace.attention_density
    assert (density[0] == 1).all()
    assert (np.diff(density, axis=0) <= 0).all()
    assert density[-1].max() < 1
    none = sparse_attention(-100.0, way="history", blocks=(64, 32), **EVERYWHERE)
    every = run(network, none)
    assert (every.trace.attention_density == 1).all()
    assert difference(every.latents, run(network).latents) < 1e-5


def test_a_skipped_block_remembers(network):
    skip = np.zeros((STEPS, LAYERS), bool)
    skip[1, 1] = True
    way = sparse_attention(-1.0, way="history", blocks=(64, 32), **EVERYWHERE)
    trace = run(network, chain(fixed(skip=skip), way)).trace
    density = trace.attention_density[:, :, 1]
    assert (density[1] == 0).all()
    assert (density[2] < 1).all()


@pytest.mark.parametrize("order", ["morton", "hilbert"])
def test_the_order_of_tokens_changes_nothing_where_all_keys_count(network, order):
    dense = run(network)
    every = run(network, sparse_attention(DENSE, order=order, **EVERYWHERE))
    assert difference(every.latents, dense.latents) < 1e-5
    chosen = [
        run(network, sparse_attention(1.0, order=name, **EVERYWHERE))
        for name in ("frames", order)
    ]
    assert difference(chosen[1].latents, dense.latents) > 1e-4
    assert difference(chosen[1].latents, chosen[0].latents) > 1e-4


def test_blocks_of_another_size_for_short_videos(network):
    policy = sparse_attention(1.0, blocks=(48, 32), **EVERYWHERE)
    trace = run(network, policy, kernels=False).trace
    smaller = trace.attention_density
    larger = run(network, sparse_attention(1.0, **EVERYWHERE)).trace.attention_density
    # Of smaller blocks fewer are a tile's own.
    assert (smaller < larger - 0.1).all()


def test_the_share_falls_with_tau_and_the_trace_says_where(network):
    shares = []
    for tau in (0.0, 2.0, np.inf):
        policy = sparse_attention(tau, dense_steps=0.34)
        trace = run(network, policy).trace
        density = trace.attention_density
        assert density.shape == trace.gamma.shape == (STEPS, 2, LAYERS)
        # The first step and the first block are dense.
        assert (density[0] == 1.0).all()
        assert (density[:, :, 0] == 1.0).all()
        assert (density[1:, :, 1] < 1.0).all()
        shares.append(density[1:, :, 1].mean())
    assert shares[0] > shares[1] > shares[2] > 0.2


def test_another_tau_needs_no_other_program(network):
    first = prepared(network, sparse_attention(0.3))
    second = prepared(network, sparse_attention(0.9, dense_steps=0.5))
    assert (first.program, first.graph) == (second.program, second.graph)
    shapes = [jax.tree.map(jnp.shape, found.inputs) for found in (first, second)]
    assert shapes[0] == shapes[1]
    compiled: Any = run_jitted
    run_jitted(*first)
    programs = compiled._cache_size()
    run_jitted(*second)
    assert compiled._cache_size() == programs


def test_dropped_blocks_and_their_means_give_different_videos(network):
    means, dropped = (
        run(network, sparse_attention(np.inf, approximate=approximate, **EVERYWHERE))
        for approximate in (True, False)
    )
    assert (means.trace.attention_density == dropped.trace.attention_density)[0].all()
    assert difference(means.latents, dropped.latents) > 1e-4


@pytest.mark.parametrize("way", ["radial", "window"])
@pytest.mark.parametrize("approximate", [True, False])
def test_masks_over_frames_have_one_share_everywhere(network, way, approximate):
    policy = sparse_attention(
        way=way, width=0.1, frames=1, approximate=approximate, **EVERYWHERE
    )
    # Frames of 324 tokens: a mask cannot skip within a tile of queries.
    density = run(network, policy, shape=(4, 4, 36, 36)).trace.attention_density
    assert 0.2 < density.min() == density.max() < 1.0


@pytest.mark.parametrize("attention", [None, "int8"])
def test_scores_may_be_of_8_bits(network, attention):
    """By the plan or everywhere; all blocks of keys are dense 8-bit attention."""
    eight = int8_attention(blocks=[1]) if attention is None else chain()
    dense = run(network, eight, attention=attention)
    policy = chain(sparse_attention(DENSE, **EVERYWHERE), eight)
    every = run(network, policy, attention=attention)
    np.testing.assert_array_equal(every.trace.int8_scores, dense.trace.int8_scores)
    # The first block is given the same; later ones round other numbers to 8 bits.
    first = every.trace.gamma[0, :, 0]
    np.testing.assert_allclose(first, dense.trace.gamma[0, :, 0], rtol=1e-5)
    policy = chain(sparse_attention(1.0, **EVERYWHERE), eight)
    sparse = run(network, policy, attention=attention)
    assert (sparse.trace.attention_density < 1.0).all()
    rounding = difference(every.latents, dense.latents)
    assert difference(sparse.latents, dense.latents) > 5 * rounding


@pytest.mark.parametrize(("name", "batched"), [("cogvideox", True), ("wan", False)])
def test_skips_routes_and_sparse_attention_in_one_program(name, batched, request):
    scheduler = SCHEDULERS[name]
    model: Any = sixbit_jax.quantize(request.getfixturevalue(name))
    skip = np.zeros((STEPS, LAYERS), bool)
    skip[1, 1] = skip[2, 0] = True
    route = np.full((LAYERS, len(model.sites)), Route.INT8)
    route[1] = Route.NVFP4
    decided = fixed(skip=skip, route=route)._replace(skips=True)
    policy = chain(decided, sparse_attention(0.5, **EVERYWHERE))
    options = {"batched_guidance": batched, "cache_format": "nvfp4"}
    trace = run((model, scheduler), policy, **options).trace
    assert (trace.skip == skip[:, None]).all()
    assert (trace.route == route).all()
    # 0 where the block was skipped: nothing was computed.
    assert (trace.attention_density[trace.skip] == 0.0).all()
    computed = trace.attention_density[~trace.skip]
    assert ((computed > 0.2) & (computed < 1.0)).all()


def test_all_blocks_of_keys_are_dense_attention_beside_skips(network):
    skip = np.zeros((STEPS, LAYERS), bool)
    skip[1, 1] = skip[2, 0] = True
    decided = fixed(skip=skip)._replace(skips=True)
    dense = run(network, decided, cache_format="float32")
    policy = chain(decided, sparse_attention(DENSE, **EVERYWHERE))
    every = run(network, policy, cache_format="float32")
    assert difference(every.latents, dense.latents) < 1e-5
    expected = np.broadcast_to(np.where(skip, 0.0, 1.0)[:, None], (STEPS, 2, LAYERS))
    for found in (every, dense):
        np.testing.assert_array_equal(found.trace.attention_density, expected)


def test_stable_blocks_are_sparse_and_volatile_ones_dense(network):
    gamma = run(network).trace.gamma
    limit = float(np.median(gamma[0]))
    policy = sparse_attention(np.inf, max_gamma=limit, **EVERYWHERE)
    trace = run(network, policy).trace
    assert (trace.attention_density[0] == 1.0).all()
    np.testing.assert_array_equal(
        trace.attention_density[1:] < 1.0, trace.gamma[:-1] <= limit
    )
    assert 0 < (trace.attention_density[1:] < 1.0).mean() < 1


def test_groups_of_blocks_that_skip_together_keep_their_shares(cogvideox):
    skip = np.zeros((STEPS, LAYERS), bool)
    skip[1] = True
    decided = fixed(skip=skip)._replace(skips=True, group=None)
    policy = chain(decided, sparse_attention(1.0, dense_steps=0.0))
    trace = run((cogvideox, CogVideoXDDIM()), policy).trace
    density = trace.attention_density
    assert (density[1] == 0.0).all()
    assert (density[[0, 2], :, 0] == 1.0).all()
    assert (density[[0, 2], :, 1] < 1.0).all()
