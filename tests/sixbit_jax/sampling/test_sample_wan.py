"""The sampler on a Wan transformer: the loop, the plan and the prompt's keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sixbit_jax
from sixbit_jax.policies import fixed
from sixbit_jax.quantizers.nvfp4 import quantize
from sixbit_jax.routes import Route
from sixbit_jax.sampling.guidance import guide
from sixbit_jax.sampling.options import Execution, Prompt
from sixbit_jax.sampling.schedulers import FlowMatchEuler, UniPC
from tests.sixbit_jax.models.small_wan import small_model

SHAPE = (2, 4, 4, 4)
STEPS = 3
EXECUTION = Execution(dtype=jnp.float32, kernels=False)


@pytest.fixture(scope="module")
def model():
    return small_model(num_layers=2)


def prompts():
    return jax.random.normal(jax.random.key(1), (2, 1, 5, 32))


@pytest.mark.parametrize("scheduler", [UniPC(), FlowMatchEuler(shift=3.0)])
def test_the_sampler_is_the_plain_denoising_loop(model, scheduler):
    text, negative = prompts()
    noise = jax.random.normal(jax.random.key(2), (1, *SHAPE))
    result = sixbit_jax.sample(
        model,
        scheduler,
        Prompt(text, negative, as_given=True),
        latent_shape=SHAPE,
        num_steps=STEPS,
        guidance=5.0,
        noise=noise,
        execution=EXECUTION,
    )
    forward = jax.jit(lambda x, text, time: model(x, text, time))
    sample, state = noise, scheduler.init(STEPS, noise.shape)
    for index, timestep in enumerate(scheduler.timesteps(STEPS)):
        time = jnp.full((1,), timestep, jnp.float32)
        output = guide(
            forward(sample, text, time), forward(sample, negative, time), 5.0
        )
        sample, state = scheduler.step(state, index, output, sample, None)
    np.testing.assert_allclose(result.latents, sample, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        result.trace.timestep, scheduler.timesteps(STEPS), rtol=1e-6
    )


def test_six_sites_take_the_routes_of_the_plan(model):
    text, _ = prompts()
    text = Prompt(text, as_given=True)
    options = {
        "latent_shape": SHAPE,
        "num_steps": STEPS,
        "guidance": 1.0,
        "execution": EXECUTION,
    }
    exact = sixbit_jax.sample(model, UniPC(), text, **options)
    low = sixbit_jax.sample(
        quantize(model), UniPC(), text, policy=fixed(route=Route.INT8), **options
    )
    assert low.trace.route.shape == (STEPS, 1, 2, 6)
    assert (low.trace.route == Route.INT8).all()
    error = np.linalg.norm(low.latents - exact.latents)
    assert 1e-4 < error / np.linalg.norm(exact.latents) < 0.5
