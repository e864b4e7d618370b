"""The CogVideoX schedulers against diffusers, and their refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.sampling.guidance import dynamic_guidance_scale, guide
from sixbit_jax.sampling.schedulers import CogVideoXDDIM, CogVideoXDPM, from_config
from tests.golden.fake_model import fake_model
from tests.golden.trajectories import (
    SAMPLE_SHAPE,
    TRAINING_TIMESTEPS,
    GoldenTrajectory,
    first_sample,
    load_training,
    load_trajectories,
    step_noise,
    training_pair,
)

TRAJECTORIES = [*load_trajectories("ddim"), *load_trajectories("dpm")]
SCHEDULERS = [CogVideoXDDIM, CogVideoXDPM]


def relative_l2(actual, expected) -> float:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def trajectory_id(case: GoldenTrajectory) -> str:
    return f"{case.config['_class_name']}-{case.name}"


def one_step(scheduler, sample, state, index, timestep, scale, noise):
    output = guide(*fake_model(jnp, sample, timestep), scale)
    return scheduler.step(state, index, output, sample, noise)


def run(scheduler, case: GoldenTrajectory, scales) -> list[jax.Array]:
    """The denoising loop, not compiled."""
    sample = jnp.asarray(first_sample())
    state = scheduler.init(case.num_steps, SAMPLE_SHAPE)
    samples = []
    for index, noise in enumerate(jnp.asarray(step_noise(case.num_steps))):
        timestep = jnp.float32(case.timesteps[index])
        sample, state = one_step(
            scheduler, sample, state, index, timestep, scales[index], noise
        )
        samples.append(sample)
    return samples


@partial(jax.jit, static_argnames="scheduler")
def run_compiled(scheduler, state, timesteps, scales, sample, noise):
    """The denoising loop in one program, as the sampler has it."""

    def body(carry, xs):
        carry = one_step(scheduler, *carry, *xs)
        return carry, carry[0]

    xs = (jnp.arange(timesteps.shape[0]), timesteps, scales, noise)
    return jax.lax.scan(body, (sample, state), xs)[1]


@pytest.mark.parametrize("case", TRAJECTORIES, ids=trajectory_id)
def test_trajectory_equals_diffusers_after_every_step(case):
    scheduler = from_config(case.config)
    timesteps = scheduler.timesteps(case.num_steps)
    np.testing.assert_array_equal(timesteps, case.timesteps)
    scales = jnp.full(case.num_steps, case.guidance_scale, jnp.float32)
    if case.dynamic:
        scales = dynamic_guidance_scale(case.guidance_scale, timesteps, case.num_steps)
        np.testing.assert_allclose(scales, case.scales, rtol=1e-6)
    samples = run(scheduler, case, scales)
    errors = [relative_l2(a, b) for a, b in zip(samples, case.samples, strict=True)]
    assert max(errors) < 1e-5


@pytest.mark.parametrize("case", [TRAJECTORIES[0], TRAJECTORIES[-1]], ids=trajectory_id)
def test_the_loop_compiles_with_a_traced_index(case):
    scheduler = from_config(case.config)
    scales = jnp.full(case.num_steps, case.guidance_scale, jnp.float32)
    samples = run_compiled(
        scheduler,
        scheduler.init(case.num_steps, SAMPLE_SHAPE),
        case.timesteps.astype(np.float32),
        scales,
        first_sample(),
        step_noise(case.num_steps),
    )
    assert relative_l2(samples, case.samples) < 1e-5


def test_golden_trajectories_cover_what_the_project_promises():
    covered = {
        (
            case.config["_class_name"],
            case.num_steps,
            case.config["snr_shift_scale"],
            case.dynamic,
        )
        for case in TRAJECTORIES
        if case.guidance_scale == 6.0
    }
    assert covered == {
        (cls.class_name, steps, shift, dynamic)
        for cls in SCHEDULERS
        for steps in (10, 25, 50)
        for shift in (1.0, 3.0)
        for dynamic in (False, True)
    }


@pytest.mark.parametrize("index", range(4))
def test_forward_process_and_velocity_equal_diffusers(index):
    config, noisy, velocity = load_training()[index]
    scheduler = from_config(config)
    clean, noise = map(jnp.asarray, training_pair())
    timestep = jnp.array(TRAINING_TIMESTEPS)
    for row in range(len(TRAINING_TIMESTEPS)):
        actual = scheduler.add_noise(clean, noise, timestep)[row]
        assert relative_l2(actual, noisy[row]) < 1e-5
        actual = jax.jit(scheduler.velocity)(clean, noise, timestep)[row]
        assert relative_l2(actual, velocity[row]) < 1e-5


def test_forward_process_takes_a_scalar_timestep_and_keeps_the_dtype():
    scheduler = CogVideoXDDIM()
    clean, noise = (jnp.asarray(x, jnp.bfloat16) for x in training_pair())
    noisy = scheduler.add_noise(clean, noise, 999)
    assert noisy.dtype == jnp.bfloat16
    # Zero terminal SNR: nothing of the clean sample is left.
    np.testing.assert_array_equal(noisy, noise)


def test_velocity_and_noisy_sample_give_the_clean_sample_back():
    """One DDIM step to the clean sample inverts `add_noise` for a perfect model."""
    scheduler = CogVideoXDDIM(snr_shift_scale=3.0)
    clean, noise = map(jnp.asarray, training_pair())
    timestep = int(scheduler.timesteps(25)[-1])
    noisy = scheduler.add_noise(clean, noise, timestep)
    velocity = scheduler.velocity(clean, noise, timestep)
    state = scheduler.init(25, clean.shape)
    result, _ = scheduler.step(state, 24, velocity, noisy, None)
    assert relative_l2(result, clean) < 1e-6


@pytest.mark.parametrize("cls", SCHEDULERS)
def test_step_keeps_dtype_and_structure_of_its_carry(cls):
    scheduler = cls()
    sample = jnp.asarray(first_sample(), jnp.bfloat16)
    state = scheduler.init(10, sample.shape)
    after, next_state = scheduler.step(state, 0, sample, sample, sample)
    assert after.dtype == jnp.bfloat16
    assert jax.tree.map(jnp.shape, next_state) == jax.tree.map(jnp.shape, state)
    assert jax.tree.map(lambda x: x.dtype, next_state) == jax.tree.map(
        lambda x: x.dtype, state
    )


@pytest.mark.parametrize("cls", SCHEDULERS)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 61, 103, 500, 999, 1000])
def test_any_number_of_steps_has_finite_coefficients(cls, num_steps):
    scheduler = cls(snr_shift_scale=3.0)
    timesteps = scheduler.timesteps(num_steps)
    assert timesteps.shape == (num_steps,)
    assert timesteps[0] == 999
    assert timesteps[-1] >= 0
    assert (np.diff(timesteps) < 0).all()
    for table in scheduler.init(num_steps, SAMPLE_SHAPE):
        assert np.isfinite(table).all()


def test_schedulers_are_static_values():
    assert CogVideoXDDIM() == CogVideoXDDIM(snr_shift_scale=1.0)
    assert hash(CogVideoXDDIM()) == hash(CogVideoXDDIM())
    assert CogVideoXDDIM() != CogVideoXDPM()
    assert not CogVideoXDDIM().stochastic
    assert CogVideoXDPM().stochastic
    assert CogVideoXDPM().prediction_type == "v_prediction"


def test_a_stochastic_step_without_noise_is_refused():
    scheduler = CogVideoXDPM()
    sample = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"noise of shape \(2, 3\), found None"):
        scheduler.step(scheduler.init(10, (2, 3)), 0, sample, sample, None)


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_impossible_step_counts_are_refused(num_steps):
    with pytest.raises(ValueError, match=f"1 to 1000 .* found {num_steps}"):
        CogVideoXDDIM().timesteps(num_steps)


def test_an_offset_past_the_schedule_is_refused():
    scheduler = CogVideoXDDIM(timestep_spacing="leading", steps_offset=1)
    assert scheduler.timesteps(999)[0] == 999
    with pytest.raises(ValueError, match="start at timestep 1000"):
        scheduler.timesteps(1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "PNDMScheduler"}, "'PNDMScheduler'"),
        ({"_class_name": None}, "found None"),
        ({"prediction_type": "flow"}, r"prediction_type: expected .* found 'flow'"),
        ({"timestep_spacing": "karras"}, r"timestep_spacing: .* found 'karras'"),
        ({"beta_schedule": "linear"}, "beta_schedule: .* found 'linear'"),
        ({"trained_betas": [0.1]}, r"trained_betas: expected None, found \[0.1\]"),
        ({"thresholding": True}, "thresholding: not a field"),
        ({"snr_shift_scale": 0.0}, "snr_shift_scale: .* found 0.0"),
        ({"beta_start": 0.5, "beta_end": 0.1}, "found 0.5 and 0.1"),
        ({"num_train_timesteps": 1}, "num_train_timesteps: .* found 1"),
        ({"steps_offset": -1}, "steps_offset: .* found -1"),
        (
            {"prediction_type": "epsilon", "rescale_betas_zero_snr": True},
            "expected rescale_betas_zero_snr=False",
        ),
    ],
)
def test_unsupported_configurations_are_refused(change, message):
    config = TRAJECTORIES[0].config | change
    with pytest.raises(ValueError, match=message):
        from_config(config)


def test_all_problems_of_a_configuration_are_named_at_once():
    with pytest.raises(ValueError, match=r"snr_shift_scale.*\n *prediction_type"):
        CogVideoXDDIM(prediction_type="flow", snr_shift_scale=-1.0)


def test_a_class_refuses_the_configuration_of_another():
    with pytest.raises(
        ValueError, match="expected _class_name 'CogVideoXDPMScheduler'"
    ):
        CogVideoXDPM.from_config({"_class_name": "CogVideoXDDIMScheduler"})
