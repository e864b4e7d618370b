"""The sampler on a HunyuanVideo transformer: two stacks, masks, embedded guidance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sixbit_jax
from sixbit_jax.models.hunyuan_video.config import HunyuanVideoConfig
from sixbit_jax.models.hunyuan_video.description import describe
from sixbit_jax.quantizers.nvfp4 import quantize
from sixbit_jax.routes import Route
from sixbit_jax.sampling.api import block_grid
from sixbit_jax.sampling.guidance import guide
from sixbit_jax.sampling.schedulers.choice import choose_scheduler
from tests.golden.hunyuan_video_cases import FOLDER
from tests.sixbit_jax.models.small_hunyuan_video import small_model, small_prompt

SHAPE = (2, 4, 4, 4)
STEPS = 3
BLOCKS, SITES = 5, 10
SCHEDULER = sixbit_jax.FlowMatchEuler(shift=7.0, spacing="even")
EXECUTION = sixbit_jax.Execution(
    dtype=jnp.float32, kernels=False, cache_format="float32"
)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def quantized(model):
    return quantize(model)


def prompt_of(given, negative=None):
    if negative is None:
        return sixbit_jax.Prompt(given.embeds, mask=given.mask, pooled=given.pooled)
    return sixbit_jax.Prompt(
        given.embeds,
        negative.embeds,
        mask=given.mask,
        negative_mask=negative.mask,
        pooled=given.pooled,
        negative_pooled=negative.pooled,
    )


def run(model, prompt, **options):
    options = {
        "latent_shape": SHAPE,
        "num_steps": STEPS,
        "execution": EXECUTION,
    } | options
    return sixbit_jax.sample(model, SCHEDULER, prompt, **options)


def relative(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("embedded", "scale"), [(None, None), (2.5, None), (4.0, 3.0)])
def test_the_sampler_is_the_plain_denoising_loop(model, embedded, scale):
    """The scale that the network reads is no second pass; a true one is."""
    given, negative = small_prompt((5,)), small_prompt((3,), seed=2)
    noise = jax.random.normal(jax.random.key(2), (1, *SHAPE))
    result = run(
        model,
        prompt_of(given, None if scale is None else negative),
        guidance=sixbit_jax.Guidance(scale, embedded=embedded),
        noise=noise,
    )
    assert result.trace.skip.shape == (STEPS, 1 if scale is None else 2, BLOCKS)
    forward = jax.jit(lambda x, prompt, *rest: model(x, *prompt, *rest))
    read = jnp.full((1,), 6.0 if embedded is None else embedded)
    sample, state = noise, SCHEDULER.init(STEPS, noise.shape)
    for index, timestep in enumerate(SCHEDULER.timesteps(STEPS)):
        time = jnp.full((1,), timestep, jnp.float32)
        output = forward(sample, given, time, read)
        if scale is not None:
            output = guide(output, forward(sample, negative, time, read), scale)
        sample, state = SCHEDULER.step(state, index, output, sample, None)
    assert relative(result.latents, sample) < 1e-4


def test_prompts_of_different_lengths_in_a_batch_are_single_runs(model):
    given = small_prompt((8, 1, 4))
    noise = jax.random.normal(jax.random.key(3), (3, *SHAPE))
    together = run(model, prompt_of(given), noise=noise)
    for row, length in enumerate((8, 1, 4)):
        rows = slice(row, row + 1)
        alone = type(given)(
            given.embeds[rows, :length], given.mask[rows, :length], given.pooled[rows]
        )
        found = run(model, prompt_of(alone), noise=noise[rows])
        assert relative(together.latents[rows], found.latents) < 1e-4


def test_the_grid_has_the_sites_of_both_stacks(model):
    grid = block_grid(model)
    assert (grid.num_blocks, len(grid.sites)) == (BLOCKS, SITES)
    assert (grid.macs[:2, :8] > 0).all()
    assert (grid.macs[:2, 8:] == 0).all()
    assert (grid.macs[2:, :8] == 0).all()
    assert (grid.macs[2:, 8:] > 0).all()


@pytest.mark.parametrize("attention", ["bf16", "int8"])
def test_routes_and_skips_of_both_stacks(quantized, attention):
    routes = np.full((BLOCKS, SITES), Route.INT8)
    routes[1, :4], routes[3] = Route.NVFP4, Route.BF16
    skip = np.zeros((STEPS, BLOCKS), bool)
    skip[1, 0] = skip[1, 4] = True
    execution = dataclasses.replace(EXECUTION, attention=attention)
    prompt = prompt_of(small_prompt((5, 8)))
    found = run(
        quantized,
        prompt,
        policy=sixbit_jax.fixed(route=routes, skip=skip),
        execution=execution,
    )
    np.testing.assert_array_equal(found.trace.skip[:, 0], skip)
    ran = ~skip[:, :, None] & (block_grid(quantized).macs > 0)
    wanted = np.broadcast_to(routes, (STEPS, BLOCKS, SITES))
    np.testing.assert_array_equal(np.asarray(found.trace.route)[:, 0][ran], wanted[ran])
    assert found.trace.int8_scores.all() == (attention == "int8")
    # Against the same stored weights without quantized activations and skips.
    exact = run(quantized, prompt)
    assert 1e-4 < relative(found.latents, exact.latents) < 0.3


def test_skipping_nothing_is_the_run_without_a_cache(model):
    prompt = prompt_of(small_prompt())
    policy = sixbit_jax.fixed(skip=np.zeros((STEPS, BLOCKS), bool))
    found, plain = run(model, prompt, policy=policy), run(model, prompt)
    assert relative(found.latents, plain.latents) < 1e-5
    # Two dual and three single blocks, each with a change of its own.
    assert (np.asarray(plain.trace.gamma) > 0).all()


def test_8_bit_attention_is_close_and_not_the_same(model):
    prompt = prompt_of(small_prompt((5, 8)))
    exact = run(model, prompt)
    low = run(model, prompt, execution=dataclasses.replace(EXECUTION, attention="int8"))
    assert 1e-5 < relative(low.latents, exact.latents) < 0.05


def test_a_given_first_frame_is_kept_and_required():
    model = small_model(image_condition_type="token_replace", num_single_layers=1)
    first = jax.random.normal(jax.random.key(4), (1, 1, *SHAPE[1:]))
    prompt = prompt_of(small_prompt())
    found = run(model, prompt, conditions=sixbit_jax.Conditions(first_frames=first))
    np.testing.assert_array_equal(found.latents[:, :1], first)
    with pytest.raises(ValueError, match=r"first_frames: .*\[1, 1, 4, 4, 4\].* none"):
        run(model, prompt)
    twice = sixbit_jax.Conditions(first_frames=jnp.concatenate([first, first], 1))
    with pytest.raises(ValueError, match=r"first_frames: .*found \(1, 2, 4, 4, 4\)"):
        run(model, prompt, conditions=twice, latent_shape=(3, 4, 4, 4))


def test_image_latents_are_channels_of_latent_concat():
    model = small_model(
        image_condition_type="latent_concat",
        in_channels=9,
        guidance_embeds=False,
        num_single_layers=1,
    )
    image = jax.random.normal(jax.random.key(4), (1, 2, 5, 4, 4))
    prompt = prompt_of(small_prompt())
    conditions = sixbit_jax.Conditions(image_latents=image)
    found = run(model, prompt, conditions=conditions)
    other = sixbit_jax.Conditions(image_latents=-image)
    assert relative(run(model, prompt, conditions=other).latents, found.latents) > 1e-3
    guidance = sixbit_jax.Guidance(embedded=6.0)
    with pytest.raises(ValueError, match="embedded: expected none"):
        run(model, prompt, conditions=conditions, guidance=guidance)


def test_a_prompt_without_its_mask_and_pooled_embedding_is_refused(model):
    with pytest.raises(ValueError, match=r"prompt.mask.*\n.*prompt.pooled"):
        run(model, sixbit_jax.Prompt(small_prompt().embeds))


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_the_published_schedule_is_that_of_diffusers(steps):
    description = describe(HunyuanVideoConfig())
    stored = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 7.0}
    for config in (None, stored):
        found = choose_scheduler(description, config)
        with np.load(FOLDER / "schedule.npz") as file:
            expected = file[f"timesteps_{steps}"], file[f"sigmas_{steps}"]
        np.testing.assert_allclose(found.timesteps(steps), expected[0], rtol=1e-6)
        np.testing.assert_allclose(found.sigmas(steps), expected[1], rtol=1e-6)


def test_sparse_attention_that_skips_nothing_is_dense(model):
    """Text queries and blocks of text stay whole, padding stays invisible."""
    prompt = prompt_of(small_prompt((5, 8)))
    exact = run(model, prompt)
    everything = sixbit_jax.sparse_attention(tau=-1e9, dense_steps=0.0, dense_blocks=())
    found = run(model, prompt, policy=everything)
    assert relative(found.latents, exact.latents) < 1e-4
    window = sixbit_jax.sparse_attention(
        way="window", frames=0, approximate=False, dense_steps=0.0, dense_blocks=()
    )
    # 4,000 video tokens in two frames: blocks of the other frame are dropped.
    wide = (2, 4, 4, 2000)
    dense, sparse = (
        run(model, prompt, policy=policy, latent_shape=wide, num_steps=1)
        for policy in (None, window)
    )
    assert (np.asarray(sparse.trace.attention_density) < 0.8).all()
    assert 1e-4 < relative(sparse.latents, dense.latents) < 0.5
