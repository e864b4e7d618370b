"""The flow-matching schedulers against diffusers, and their refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.sampling.guidance import guide
from sixbit_jax.sampling.schedulers import FlowMatchEuler, UniPC, from_config
from tests.golden.fake_model import fake_model
from tests.golden.trajectories import SAMPLE_SHAPE, first_sample
from tests.golden.wan_cases import FOLDER

GUIDANCE = 5.0


def golden():
    with np.load(FOLDER / "schedulers.npz") as file:
        return [
            (meta, file[f"{number}.timesteps"], file[f"{number}.samples"])
            for number, meta in enumerate(json.loads(str(file["meta"])))
        ]


def relative_l2(found, expected) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def case_id(case) -> str:
    options = case[0]["config"]
    shift = options.get("shift", options.get("flow_shift"))
    order = options.get("solver_order", "")
    return f"{options['_class_name'][:5]}-{shift:g}-{order}-s{case[0]['num_steps']}"


def run(scheduler, num_steps, timesteps):
    """The denoising loop in one program, as the sampler has it."""

    def body(carry, xs):
        sample, state = carry
        index, timestep = xs
        output = guide(*fake_model(jnp, sample, timestep), GUIDANCE)
        carry = scheduler.step(state, index, output, sample, None)
        return carry, carry[0]

    start = (jnp.asarray(first_sample()), scheduler.init(num_steps, SAMPLE_SHAPE))
    xs = (jnp.arange(num_steps), jnp.asarray(timesteps, jnp.float32))
    return jax.jit(lambda start, xs: jax.lax.scan(body, start, xs)[1])(start, xs)


@pytest.mark.parametrize("case", golden(), ids=case_id)
def test_trajectory_equals_diffusers_after_every_step(case):
    meta, timesteps, samples = case
    scheduler = from_config(meta["config"])
    found = scheduler.timesteps(meta["num_steps"])
    assert found.dtype == timesteps.dtype
    np.testing.assert_allclose(found, timesteps, rtol=1e-6)
    result = run(scheduler, meta["num_steps"], timesteps)
    if meta["config"].get("solver_type") == "bh1":
        # diffusers multiplies an infinite B(h) by 0 in the step to the clean sample.
        assert np.isnan(samples[-1]).all()
        assert np.isfinite(result[-1]).all()
        result, samples = result[:-1], samples[:-1]
    errors = [relative_l2(a, b) for a, b in zip(result, samples, strict=True)]
    assert np.max(errors) < 1e-5


@pytest.mark.parametrize("scheduler", [FlowMatchEuler(shift=3.0), UniPC()])
def test_the_true_velocity_leads_to_the_clean_sample(scheduler):
    clean, noise = np.ones((1, 4), "f"), np.full((1, 4), -0.5, "f")
    sample, state = jnp.asarray(noise), scheduler.init(6, noise.shape)
    for index in range(6):
        velocity = scheduler.velocity(clean, noise, 0)
        sample, state = scheduler.step(state, index, velocity, sample, None)
    np.testing.assert_allclose(sample, clean, atol=1e-5)
    assert not scheduler.stochastic
    assert scheduler.prediction_type == "flow_prediction"


def test_noise_is_added_on_straight_paths():
    clean, noise = np.ones((3, 2), "f"), np.full((3, 2), -1.0, "f")
    noisy = UniPC().add_noise(clean, noise, np.array([0, 250, 1000]))
    np.testing.assert_allclose(noisy[:, 0], [1.0, 0.5, -1.0])
    low = UniPC().add_noise(clean.astype(jnp.bfloat16), noise, 500.0)
    assert low.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0}, "shift"),
        (
            {
                "_class_name": "FlowMatchEulerDiscreteScheduler",
                "use_karras_sigmas": True,
            },
            "use_karras_sigmas: expected False",
        ),
        (
            {"_class_name": "UniPCMultistepScheduler"},
            "prediction_type: expected 'flow_prediction', found 'epsilon'\n  "
            "use_flow_sigmas: expected True",
        ),
        ({"_class_name": "UniPCMultistepScheduler", "wings": 2}, "wings"),
    ],
)
def test_configs_that_are_not_supported_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        from_config(config)


def test_values_outside_of_the_method_are_refused():
    with pytest.raises(ValueError) as error:
        UniPC(flow_shift=0.0, solver_order=4, solver_type="bh3")
    for name in ("flow_shift", "solver_order", "solver_type"):
        assert name in str(error.value)
    with pytest.raises(ValueError, match="num_steps: expected 1 to 1000"):
        UniPC().timesteps(0)
    with pytest.raises(ValueError, match="num_train_timesteps"):
        FlowMatchEuler(num_train_timesteps=0)
