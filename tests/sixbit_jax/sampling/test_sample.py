"""Properties of the sampling program, on a small random model."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sixbit_jax
from sixbit_jax.policies import ErrorPredictor, chain, dmpq, fixed, pdr, tdc
from sixbit_jax.routes import Route
from sixbit_jax.sampling.api import prepare, run_jitted
from sixbit_jax.sampling.guidance import guide
from sixbit_jax.sampling.loop import run_program
from sixbit_jax.sampling.options import Execution, Guidance, Prompt
from sixbit_jax.sampling.schedulers import CogVideoXDDIM, CogVideoXDPM
from tests.sixbit_jax.models.small import small_model

SHAPE = (3, 4, 8, 8)
SITES = ("attn_in", "attn_out", "ff_in", "ff_mid")
# Four heads of 64: K of every site is a multiple of 128.
WIDE = {"num_attention_heads": 2, "num_layers": 3}


def embeds(seed: int):
    return jax.random.normal(jax.random.key(seed), (1, 6, 32))


@pytest.fixture(scope="module")
def model():
    return small_model(**WIDE)


@pytest.fixture(scope="module")
def quantized(model):
    return sixbit_jax.quantize(model)


def run(model, **options):
    """Runs `prepare`, whose options include those that measure."""
    return run_jitted(*prepared(model, **options))


def prepared(model, *, text=None, negative=True, scheduler=None, scale=None, **options):
    names = [field.name for field in dataclasses.fields(Execution)]
    how = {name: options.pop(name) for name in names if name in options}
    text = embeds(1) if text is None else text
    negative = embeds(9) if negative is True else negative
    options = {"latent_shape": SHAPE, "num_steps": 4} | options
    return prepare(
        model,
        scheduler or CogVideoXDDIM(),
        Prompt(text, negative),
        guidance=Guidance(scale),
        execution=Execution(**({"dtype": jnp.float32} | how)),
        **options,
    )


def skip_at(steps: int, *skipped: tuple[int, int], blocks: int = 3):
    """A fixed plan that skips the given (step, block) pairs."""
    skip = np.zeros((steps, blocks), bool)
    for step, block in skipped:
        skip[step, block] = True
    return fixed(skip=skip)


def test_full_precision_equals_a_plain_loop(model):
    """The definition: forward passes, guidance and the scheduler, step by step."""
    noise = jax.random.normal(jax.random.key(3), (1, *SHAPE))
    result = run(model, noise=noise, scale=4.0)
    scheduler = CogVideoXDDIM()
    state, x = scheduler.init(4, noise.shape), noise
    forward = jax.jit(lambda *args: model(*args))
    for index, t in enumerate(scheduler.timesteps(4)):
        time = jnp.full((1,), t, jnp.float32)
        output = guide(forward(x, embeds(1), time), forward(x, embeds(9), time), 4.0)
        x, state = scheduler.step(state, index, output, x, None)
    np.testing.assert_allclose(result.latents, x, rtol=0, atol=2e-5)


def test_policy_of_nothing_is_the_full_precision_program(model):
    first = run(model)
    second = run(model, policy=chain())
    np.testing.assert_array_equal(first.latents, second.latents)


def test_another_prompt_seed_scale_and_threshold_do_not_recompile(quantized):
    predictor = ErrorPredictor(SITES, np.ones((3, 4)), np.zeros((3, 4)))

    def policy(threshold, tau):
        return chain(dmpq(predictor, threshold), tdc(tau), pdr())

    run(quantized, policy=policy(0.1, 0.1))
    before = run_jitted._cache_size()
    run(
        quantized,
        policy=policy(0.3, 0.2),
        text=embeds(5),
        seed=7,
        scale=2.5,
    )
    assert run_jitted._cache_size() == before
    run(quantized, policy=policy(0.3, 0.2), num_steps=5)
    assert run_jitted._cache_size() == before + 1


def test_same_seed_same_video_other_seed_other_video(model):
    first, again, other = run(model), run(model), run(model, seed=1)
    np.testing.assert_array_equal(first.latents, again.latents)
    assert np.abs(first.latents - other.latents).max() > 0.1


def test_batched_guidance_gives_the_numbers_of_sequential(model):
    sequential, batched = run(model), run(model, batched_guidance=True)
    np.testing.assert_allclose(sequential.latents, batched.latents, atol=5e-5)
    assert sequential.trace.gamma.shape == (4, 2, 3)
    assert batched.trace.gamma.shape == (4, 1, 3)


def test_guidance_scale_one_runs_one_branch(model):
    result = run(model, scale=1.0)
    assert result.trace.skip.shape == (4, 1, 3)
    without = run(model, scale=1.0, negative=None)
    np.testing.assert_array_equal(result.latents, without.latents)


@pytest.mark.parametrize("steps", [1, 2])
def test_one_and_two_steps_never_skip(quantized, steps):
    result = run(quantized, policy=tdc(0.9), num_steps=steps)
    assert np.isfinite(result.latents).all()
    assert not result.trace.skip.any()


def test_stochastic_scheduler_depends_on_the_seed_only(model):
    noise = jax.random.normal(jax.random.key(3), (1, *SHAPE))

    def dpm(seed):
        return run(
            model,
            scheduler=CogVideoXDPM(),
            noise=noise,
            seed=seed,
            scale=1.0,
            dtype=jnp.bfloat16,
        ).latents

    np.testing.assert_array_equal(dpm(0), dpm(0))
    assert np.abs(dpm(0) - dpm(1)).max() > 1e-3


def test_gamma_is_the_relative_change_of_the_block(model):
    """Recomputed from the residual stream of the first block, first step."""
    noise = jax.random.normal(jax.random.key(3), (1, *SHAPE))
    trace = run(model, noise=noise).trace
    time = jnp.full((1,), 999.0)
    x, conditioning = model.embed(noise, embeds(1), time)
    from flax import nnx

    graph, params = nnx.split(model.transformer_blocks)
    first = nnx.merge(graph, jax.tree.map(lambda p: p[0], params))
    y, _ = first(x, conditioning)
    expected = jnp.abs(y - x).sum() / jnp.abs(x).sum()
    np.testing.assert_allclose(trace.gamma[0, 0, 0], expected, rtol=1e-4)


def test_skipped_block_reuses_the_delta_and_others_run(model):
    result = run(model, policy=skip_at(4, (2, 1)), cache_format="float32")
    skip = np.asarray(result.trace.skip)
    assert skip[2, :, 1].all()
    assert skip.sum() == 2
    assert (result.trace.gamma[2, :, 1] == 0).all()
    assert (np.asarray(result.trace.gamma)[~skip] > 0).all()
    assert np.abs(result.latents - run(model).latents).max() > 1e-4


def test_skipping_with_a_stale_delta_of_the_same_input_is_exact(model):
    """With every timestep and input equal, X + cached delta is the block's output."""

    class Frozen(CogVideoXDDIM):
        def step(self, state, index, model_output, sample, noise):
            return sample, state

        def timesteps(self, num_steps):
            return np.full(num_steps, 500)

    def outputs(policy, **options):
        return run(
            model,
            scheduler=Frozen(),
            negative=None,
            num_steps=3,
            scale=1.0,
            policy=policy,
            **options,
        ).trace.output_change

    skips = skip_at(3, (1, 0), (1, 2))
    assert outputs(skips, cache_format="float32")[1] < 1e-6
    assert outputs(skips, cache_format="bf16")[1] < 5e-3
    assert outputs(skips, cache_format="int8")[1] < 2e-2
    assert outputs(skips, cache_format="nvfp4")[1] < 0.2


def test_only_skippable_blocks_have_a_slot(model):
    plan = skip_at(4, (2, 0), (2, 1), (2, 2))
    some = run(model, policy=plan._replace(skips=(1,)), cache_format="float32")
    assert some.trace.skip[2, :, 1].all()
    assert not some.trace.skip[:, :, [0, 2]].any()
    only = run(model, policy=skip_at(4, (2, 1)), cache_format="float32")
    np.testing.assert_allclose(some.latents, only.latents, atol=1e-6)


def test_branches_have_their_own_cache(model):
    """Skipping in both branches must read each branch's own delta."""
    result = run(
        model,
        policy=skip_at(4, (1, 0), (1, 1), (1, 2)),
        negative=embeds(1),
        cache_format="float32",
        scale=6.0,
    )
    # Equal prompts: both branches give one prediction, so guidance changes nothing.
    alone = run(
        model,
        policy=skip_at(4, (1, 0), (1, 1), (1, 2)),
        cache_format="float32",
        scale=1.0,
    )
    np.testing.assert_allclose(result.latents, alone.latents, atol=1e-4)


def compiled_text(model, policy, **options):
    return run_jitted.lower(*prepared(model, policy=policy, **options))


def computations(hlo: str) -> dict[str, str]:
    """Bodies of an HLO module's computations by name."""
    bodies = {}
    for part in hlo.split("\n\n"):
        head = part.strip().split("\n", 1)[0]
        if head.endswith("{"):
            name = head.removeprefix("ENTRY ").split(" ")[0].lstrip("%")
            bodies[name] = part
    return bodies


def reachable(name: str, bodies: dict[str, str], seen: set[str]) -> set[str]:
    seen.add(name)
    for other in bodies:
        if other not in seen and f"%{other}" in bodies[name]:
            reachable(other, bodies, seen)
    return seen


def test_a_skipped_block_runs_no_matmul(model):
    """In the compiled program: a conditional whose skip branch holds no dot."""
    hlo = compiled_text(model, tdc(0.1)).compile().as_text()
    bodies = computations(hlo)
    conditionals = [line for line in hlo.splitlines() if " conditional(" in line]
    assert conditionals, "no conditional: the skip became a select"
    with_matmul = []
    for line in conditionals:
        for name in re.search(r"branch_computations={(.*?)}", line)[1].split(", "):
            inside = reachable(name.lstrip("%"), bodies, set())
            body = "".join(bodies[other] for other in inside)
            with_matmul.append(" dot(" in body or "gemm" in body or "matmul" in body)
    assert sorted(with_matmul) == [False, True]


@pytest.mark.parametrize(
    ("cache_format", "bytes_per_value"),
    [("bf16", 2.0), ("int8", 1.0), ("nvfp4", 0.5625)],
)
def test_one_copy_of_the_delta_cache(cache_format, bytes_per_value):
    """Temporaries grow by one cache, not by two, when the cache grows."""
    sizes = {}
    for layers in (2, 10):
        deep = small_model(num_layers=layers)
        lowered = compiled_text(deep, tdc(0.1), cache_format=cache_format)
        sizes[layers] = lowered.compile().memory_analysis().temp_size_in_bytes
    tokens, width = 6 + 3 * 16, 128
    one = 8 * 2 * tokens * width * bytes_per_value
    assert sizes[10] - sizes[2] < 1.2 * one


def test_routes_of_a_quantized_model_differ_as_their_widths(quantized):
    """NVFP4 is coarser than INT8, which is coarser than BF16."""
    exact = run(quantized, policy=fixed(route=Route.BF16)).latents
    errors = [
        float(np.abs(run(quantized, policy=fixed(route=r)).latents - exact).mean())
        for r in (Route.INT8, Route.NVFP4)
    ]
    assert 0 < errors[0] < errors[1] / 3


def test_mixed_routes_equal_the_uniform_ones_where_they_agree(quantized):
    """A plan per step, block and site: all NVFP4 through the switch is NVFP4."""
    table = np.full((4, 3, 4), Route.NVFP4)
    table[3, 2, 3] = Route.INT8
    mixed = run(quantized, policy=fixed(route=table))
    np.testing.assert_array_equal(mixed.trace.route[:, 0], table)
    uniform = run(quantized, policy=fixed(route=Route.NVFP4))
    np.testing.assert_allclose(mixed.trace.gamma[0], uniform.trace.gamma[0], rtol=1e-5)


def test_outlier_rule_falls_back_to_bf16_on_the_live_activation(quantized):
    policy = chain(
        fixed(route=Route.NVFP4), pdr(outlier_ratio=1.0, scope="every_compute")
    )
    trace = run(quantized, policy=policy).trace
    assert (np.asarray(trace.route) == Route.BF16).all()
    assert (np.asarray(trace.outlier) > 1).all()


def test_errors_are_recorded_for_calibration(quantized):
    trace = run(quantized, policy=fixed(route=Route.INT8), record_errors=True).trace
    error = np.asarray(trace.error)
    assert error.shape == (4, 2, 3, 4)
    assert ((error > 0.01) & (error < 0.5)).all()


def test_low_routes_need_quantized_weights(model):
    with pytest.raises(ValueError, match=r"INT8.*stored weights.*found plain"):
        run(model, policy=fixed(route=Route.INT8))


def test_all_problems_of_the_inputs_are_listed(model):
    with pytest.raises(ValueError) as error:
        run(model, text=np.zeros((1, 6, 31)), num_steps=0, latent_shape=(3, 5, 8, 8))
    message = str(error.value)
    for part in ("[batch, tokens, 32]", "(1, 6, 31)", "num_steps", "4 channels"):
        assert part in message


def test_guidance_needs_a_negative_prompt(model):
    with pytest.raises(ValueError, match=r"negative_embeds: .* of 6\.0, found none"):
        run(model, negative=None)


def test_unknown_cache_format_is_refused(model):
    with pytest.raises(ValueError, match=r"bf16, int8, nvfp4.*'fp7'"):
        run(model, policy=tdc(0.1), cache_format="fp7")


def test_progress_is_drawn_from_inside_the_program(model, capfd):
    run(model, progress=True).latents.block_until_ready()
    jax.effects_barrier()
    assert "step 4/4" in capfd.readouterr().err


def test_vmapped_program_gives_the_numbers_of_single_runs(model):
    """Quality figures may be computed under vmap, where cond becomes select."""
    policy = tdc(1.2)
    parts = [
        prepared(model, text=embeds(seed), num_steps=5, seed=seed, policy=policy)
        for seed in (0, 1)
    ]
    program, graph, params, _ = parts[0]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[p[3] for p in parts])
    many = jax.jit(jax.vmap(lambda i: run_program(program, graph, params, i)))(stacked)
    for index, part in enumerate(parts):
        one = run_jitted(*part)
        assert one.trace.skip.any()
        np.testing.assert_array_equal(one.trace.skip, many.trace.skip[index])
        np.testing.assert_allclose(one.latents, many.latents[index], atol=1e-2)
