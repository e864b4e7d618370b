"""Schedules of few steps: given noise levels, and new noise after each step.

Every trajectory is held against one that NumPy computes here from the definition, with
a made-up network whose prediction depends on sample and timestep.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import sixbit_jax
from sixbit_jax.models.wan.config import WanConfig
from sixbit_jax.models.wan.network import WanTransformer
from sixbit_jax.sampling.schedulers import (
    CogVideoXDDIM,
    CogVideoXDPM,
    FlowMatchEuler,
    FlowMatchLCM,
    UniPC,
    few_step,
    from_config,
)
from sixbit_jax.sampling.schedulers.choice import choose_scheduler

SIGMAS = (1.0, 0.75, 0.5, 0.25)
SHIFTED = (1.0, 3.75 / 4, 2.5 / 3, 1.25 / 2)
SHAPE = (3, 4)


def predict(sample, timestep):
    return np.tanh(sample) * (0.3 + timestep / 1000) + 0.1


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal((*shape, *SHAPE))


def trajectory(scheduler, num_steps, noise=None):
    """Samples after each step, by the scheduler."""
    state = scheduler.init(num_steps, SHAPE)
    x = jnp.asarray(draw(0), jnp.float32)
    times, found = scheduler.timesteps(num_steps), []
    for index, time in enumerate(times):
        output = jnp.asarray(predict(np.asarray(x, np.float64), time), jnp.float32)
        given = None if noise is None else jnp.asarray(noise[index], jnp.float32)
        x, state = scheduler.step(state, index, output, x, given)
        found.append(np.asarray(x))
    return np.stack(found), times


def euler(levels, times):
    x, found = draw(0), []
    for now, after, time in zip(levels, (*levels[1:], 0.0), times, strict=True):
        x = x + (after - now) * predict(x, time)
        found.append(x)
    return np.stack(found)


def renoised(levels, times, noise):
    x, found = draw(0), []
    for i, (now, after) in enumerate(zip(levels, (*levels[1:], 0.0), strict=True)):
        clean = x - now * predict(x, times[i])
        x = (1 - after) * clean + after * noise[i]
        found.append(x)
    return np.stack(found)


def test_euler_at_given_sigmas_is_shifted_as_the_spaced_ones_are():
    scheduler = FlowMatchEuler(shift=5.0).with_sigmas(SIGMAS)
    found, times = trajectory(scheduler, 4)
    np.testing.assert_allclose(times, np.array(SHIFTED) * 1000, rtol=1e-6)
    np.testing.assert_allclose(found, euler(SHIFTED, times), atol=2e-6)


def test_euler_at_given_timesteps_is_not_shifted():
    scheduler = FlowMatchEuler(shift=5.0).with_timesteps((1000, 937.5, 800, 10))
    found, times = trajectory(scheduler, 4)
    np.testing.assert_allclose(times, [1000, 937.5, 800, 10])
    np.testing.assert_allclose(found, euler((1, 0.9375, 0.8, 0.01), times), atol=2e-6)


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_the_rule_of_models_that_add_new_noise(shift):
    noise = draw(1, 4)
    levels = SHIFTED if shift == 5.0 else SIGMAS
    scheduler = FlowMatchLCM(shift=shift).with_sigmas(SIGMAS)
    assert scheduler.stochastic
    found, times = trajectory(scheduler, 4, noise)
    np.testing.assert_allclose(times, np.array(levels) * 1000, rtol=1e-6)
    np.testing.assert_allclose(found, renoised(levels, times, noise), atol=2e-6)
    with pytest.raises(ValueError, match="expected standard normal noise"):
        trajectory(scheduler, 4)


def unipc(levels, times, order=2):
    """UniPC, B(h) = e^-h - 1, data prediction, from the paper's equations."""
    half = [np.log((1 - s) / s) if s < 1 else None for s in levels]
    x, found, cleans = draw(0), [], []
    last = None
    for i, now in enumerate(levels):
        clean = x - now * predict(x, times[i])
        if i:
            x = _unipc_update(levels, half, i - 1, last, [*cleans], clean, used)
            clean_after = clean
            cleans.append(clean_after)
        else:
            cleans.append(clean)
        used = min(order, len(levels) - i, i + 1)
        after = levels[i + 1] if i + 1 < len(levels) else 0.0
        last = x
        x = _unipc_predict(levels, half, i, x, cleans, used, after)
        found.append(x)
    return np.stack(found)


def _unipc_predict(levels, half, i, x, cleans, order, after):
    if after == 0:
        return cleans[-1]
    h = half[i + 1] - half[i]
    base = after / levels[i] * x - (1 - after) * np.expm1(-h) * cleans[-1]
    if order == 1:
        return base
    r = (half[i - 1] - half[i]) / h
    difference = (cleans[-2] - cleans[-1]) / r
    return base - (1 - after) * np.expm1(-h) * 0.5 * difference


def _unipc_update(levels, half, i, x, cleans, new, order):
    after = levels[i + 1]
    h = half[i + 1] - half[i]
    b = np.expm1(-h)
    base = after / levels[i] * x - (1 - after) * b * cleans[-1]
    change = new - cleans[-1]
    if order == 1:
        return base - (1 - after) * b * 0.5 * change
    r = (half[i - 1] - half[i]) / h
    phi = np.expm1(-h) / -h - 1
    right = [phi / b, 2 * (phi / -h - 0.5) / b]
    rho = np.linalg.solve(np.array([[1.0, 1.0], [r, 1.0]]), right)
    past = (cleans[-2] - cleans[-1]) / r
    return base - (1 - after) * b * (rho[0] * past + rho[1] * change)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("sigmas", [(0.95, 0.75, 0.5, 0.25, 0.1), (0.9, 0.3)])
def test_unipc_at_given_sigmas(order, sigmas):
    scheduler = UniPC(flow_shift=3.0, solver_order=order).with_sigmas(sigmas)
    levels = 3 * np.array(sigmas) / (1 + 2 * np.array(sigmas))
    found, times = trajectory(scheduler, len(sigmas))
    np.testing.assert_array_equal(times, (levels * 1000).astype(np.int64))
    np.testing.assert_allclose(found, unipc(levels, times, order), atol=5e-5)


def test_unipc_at_given_timesteps():
    scheduler = UniPC(flow_shift=3.0).with_timesteps((960, 700.5, 300))
    found, times = trajectory(scheduler, 3)
    np.testing.assert_array_equal(times, np.float32([960, 700.5, 300]))
    np.testing.assert_allclose(found, unipc((0.96, 0.7005, 0.3), times), atol=5e-5)
    assert UniPC().with_timesteps((960, 300)).timesteps(2).dtype == np.int64


def test_ddim_at_given_timesteps_leads_from_one_to_the_next():
    scheduler = CogVideoXDDIM(prediction_type="v_prediction")
    alphas = scheduler.alphas_cumprod()
    steps = (999, 700, 320, 20)
    found, times = trajectory(scheduler.with_timesteps(steps), 4)
    np.testing.assert_array_equal(times, steps)
    x, expected = draw(0), []
    for now, after in zip(steps, (*steps[1:], None), strict=True):
        a, b = alphas[now], 1.0 if after is None else alphas[after]
        v = predict(x, now)
        clean = np.sqrt(a) * x - np.sqrt(1 - a) * v
        error = np.sqrt(a) * v + np.sqrt(1 - a) * x
        x = np.sqrt(b) * clean + np.sqrt(1 - b) * error
        expected.append(x)
    np.testing.assert_allclose(found, np.stack(expected), atol=5e-6)


def test_dpm_at_the_timesteps_of_its_rule_is_the_same_run():
    noise = draw(2, 4)
    plain = CogVideoXDPM()
    # 1000 steps divide by four: the rule leads from each timestep to the next.
    given = plain.with_timesteps(plain.timesteps(4))
    np.testing.assert_array_equal(
        trajectory(plain, 4, noise)[0], trajectory(given, 4, noise)[0]
    )


def test_the_schedule_of_four_steps():
    scheduler = few_step()
    assert isinstance(scheduler, FlowMatchEuler)
    np.testing.assert_allclose(scheduler.sigmas(4)[:-1], SHIFTED, rtol=1e-6)
    assert not scheduler.stochastic
    assert few_step(8, shift=3.0, renoise=True).given_steps == 8
    assert few_step(renoise=True).stochastic


def test_diffusers_configurations_of_the_rule():
    config = {
        "_class_name": "FlowMatchLCMScheduler",
        "shift": 5.0,
        "scale_factors": None,
    }
    assert from_config(config) == FlowMatchLCM(shift=5.0)
    config = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "shift": 5.0,
        "stochastic_sampling": True,
    }
    assert from_config(config) == FlowMatchLCM(shift=5.0)
    with pytest.raises(ValueError, match=r"scale_factors: expected None"):
        from_config({"_class_name": "FlowMatchLCMScheduler", "scale_factors": [0.5]})


@pytest.mark.parametrize(
    "values",
    [(), (0.5, 0.5), (0.5, 0.7), (1.1, 0.5), (0.5, 0.0), (float("nan"),), "ab"],
)
def test_what_is_no_schedule_is_refused(values):
    for scheduler in (FlowMatchEuler(), FlowMatchLCM(), UniPC()):
        with pytest.raises(ValueError, match="given_sigmas: expected 1 to 10,000"):
            scheduler.with_sigmas(values)


def test_the_number_of_steps_is_that_of_the_schedule():
    for scheduler in (
        FlowMatchEuler().with_sigmas(SIGMAS),
        UniPC().with_timesteps((900, 500, 400, 300)),
        CogVideoXDDIM().with_timesteps((900, 500, 400, 300)),
    ):
        with pytest.raises(ValueError, match="num_steps: expected 4, one for each"):
            scheduler.timesteps(50)
        assert scheduler.given_steps == 4
    with pytest.raises(ValueError, match="expected sigmas or timesteps, found both"):
        FlowMatchEuler().with_sigmas(SIGMAS).with_timesteps((1000, 500))
    with pytest.raises(ValueError, match="expected whole numbers"):
        CogVideoXDDIM().with_timesteps((900.5, 20))


@pytest.fixture(scope="module")
def model():
    config = WanConfig.from_dict(
        {
            "num_attention_heads": 1,
            "attention_head_dim": 32,
            "num_layers": 2,
            "ffn_dim": 64,
            "text_dim": 8,
            "freq_dim": 16,
        }
    )
    from flax import nnx

    return WanTransformer(config, rngs=nnx.Rngs(0))


def test_the_sampler_runs_the_given_steps_in_one_branch(model):
    noise, steps = draw(3, 1, 2, 16)[..., :4, :4], draw(4, 4, 1, 2, 16)[..., :4, :4]
    noise = np.random.default_rng(5).standard_normal((1, 2, 16, 4, 4))
    steps = np.random.default_rng(6).standard_normal((4, 1, 2, 16, 4, 4))
    text = np.random.default_rng(7).standard_normal((1, 5, 8)).astype(np.float32)
    scheduler = few_step(renoise=True)
    result = sixbit_jax.sample(
        model,
        scheduler,
        text,
        latent_shape=(2, 16, 4, 4),
        guidance=1.0,
        noise=sixbit_jax.Noise(noise, steps),
        execution=sixbit_jax.Execution(dtype=jnp.float32),
    )
    assert result.trace.skip.shape[:2] == (4, 1)
    x, levels = noise, (*SHIFTED, 0.0)
    padded = np.zeros((1, 512, 8), np.float32)
    padded[:, :5] = text
    for i in range(4):
        v = np.asarray(
            model(
                jnp.asarray(x, jnp.float32),
                jnp.asarray(padded),
                jnp.array([levels[i] * 1000], jnp.float32),
            ),
            np.float64,
        )
        x = (1 - levels[i + 1]) * (x - levels[i] * v) + levels[i + 1] * steps[i]
    np.testing.assert_allclose(result.latents, x, atol=2e-4)


def test_options_choose_the_schedule(model):
    chosen = choose_scheduler(
        model.description, None, name="lcm", shift=5.0, sigmas=SIGMAS
    )
    assert chosen == few_step(renoise=True)
    chosen = choose_scheduler(model.description, None, timesteps=(900, 500))
    assert isinstance(chosen, UniPC)
    assert chosen.given_steps == 2
