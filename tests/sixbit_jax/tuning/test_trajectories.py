"""Recorded trajectories are those of the sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sixbit_jax
from sixbit_jax.demo.model import demo_scheduler
from sixbit_jax.sampling.guidance import guide
from sixbit_jax.tuning.trajectories import Trajectories, record_trajectories
from tests.sixbit_jax.tuning.runs import (
    LATENTS,
    prompts,
    teacher,
    trajectories,
)


def test_last_step_ends_where_the_sampler_ends():
    found, scheduler = trajectories(), demo_scheduler()
    assert found.latents.shape == (4, 3, *LATENTS)
    assert found.predictions.shape == (4, 2, 3, *LATENTS)
    result = sixbit_jax.sample(
        teacher(),
        scheduler,
        sixbit_jax.Prompt(prompts(3), np.broadcast_to(prompts(4)[3], (3, 6, 32))),
        latent_shape=LATENTS,
        num_steps=4,
        guidance=2.0,
        noise=found.latents[0],
        execution=sixbit_jax.Execution(dtype=jnp.float32),
    )
    state = scheduler.init(4, found.latents[0].shape)
    output = guide(*map(jnp.asarray, found.predictions[-1]), 2.0)
    last, _ = scheduler.step(state, 3, output, jnp.asarray(found.latents[-1]), None)
    np.testing.assert_allclose(last, result.latents, atol=2e-4)


def test_a_prediction_is_the_networks_output_for_its_row():
    found = trajectories()
    number = np.ravel_multi_index((2, 1, 2), found.predictions.shape[:3])
    batch = found.batch(np.array([number]))
    assert batch.step.tolist() == [2]
    np.testing.assert_array_equal(batch.text[0], prompts(4)[3])
    output = jax.jit(teacher().__call__)(batch.latents, batch.text, batch.timestep)
    np.testing.assert_allclose(output, batch.prediction, atol=1e-5)


def test_indices_keep_their_shape():
    batch = trajectories().batch(np.arange(6).reshape(2, 3))
    assert batch.latents.shape == (2, 3, *LATENTS)
    assert batch.timestep.shape == (2, 3)


def test_files_hold_the_same_and_know_what_made_them(tmp_path):
    found, path = trajectories(), tmp_path / "recorded"
    found.save(path, {"steps": 4, "shape": (1, 2)})
    again = Trajectories.load(path, {"steps": 4, "shape": (1, 2)})
    numbers = np.arange(len(found))
    for left, right in zip(found.batch(numbers), again.batch(numbers), strict=True):
        np.testing.assert_array_equal(left, right)
    with pytest.raises(ValueError, match=r"recorded otherwise.*'steps': \(5, 4\)"):
        Trajectories.load(path, {"steps": 5, "shape": (1, 2)})


def test_bad_inputs_are_refused():
    arguments = {"latent_shape": LATENTS, "num_steps": 2}
    with pytest.raises(ValueError, match="prompts: expected at least one"):
        record_trajectories(
            teacher(), demo_scheduler(), prompts(0), prompts(1)[0], **arguments
        )
    with pytest.raises(ValueError, match=r"exactly where guidance_scale.*none with 6"):
        record_trajectories(teacher(), demo_scheduler(), prompts(1), None, **arguments)
    found = trajectories()
    with pytest.raises(ValueError, match="timesteps: expected"):
        Trajectories(found.latents, found.predictions, found.timesteps[:2], found.text)
