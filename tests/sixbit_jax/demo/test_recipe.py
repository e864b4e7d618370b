"""The training step, on a network of one block."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sixbit_jax.demo import model, recipe, train
from sixbit_jax.sampling.schedulers import UniPC

SMALL = {"num_attention_heads": 1, "num_layers": 1, "patch_size": 16}
NUMBERS = recipe.Recipe(
    batch=4, learning_rate=3e-3, warmup=2, average_decay=0.5, dtype="float32"
)

SPAN = recipe.Span(jnp.int32(0), jnp.int32(100))


@pytest.fixture(scope="module")
def small_model():
    return model.COGVIDEOX.new(0, SMALL)


def test_the_full_network_has_the_promised_size():
    shapes = jax.eval_shape(lambda: nnx.state(model.COGVIDEOX.new(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert 8e6 < count < 10e6
    assert 2 * count < 20e6


def test_the_first_prediction_is_zero_and_blocks_are_the_identity(small_model):
    output = small_model(
        jnp.ones((1, 13, 3, 32, 32)), jnp.ones((1, 16, 128)), jnp.array([500.0])
    )
    np.testing.assert_array_equal(output, 0)
    weights = nnx.state(small_model)["transformer_blocks"]["norm1"]["linear"]["weight"]
    np.testing.assert_array_equal(weights.get_value(), 0)
    mixed = nnx.state(small_model)["transformer_blocks"]["ff"]["up"]["weight"]
    assert 0.05 < float(mixed.get_value().std()) < 0.2


def test_training_lowers_the_loss_and_moves_the_average(small_model):
    graph, state = recipe.init_state(small_model, NUMBERS)
    training = train.Training(graph, state, NUMBERS)
    assert train.train(training, steps=60, steps_per_call=20) == 60
    losses = [record["loss"] for record in training.records]
    # Predicting zero costs the mean square of the velocity, close to 1.
    assert losses[0] > 0.6
    assert losses[-1] < 0.75 * losses[0]
    assert int(training.state.step) == 60
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()),
        training.state.average,
        training.state.params,
    )
    assert 0 < max(jax.tree.leaves(moved)) < 0.1


def test_the_time_limit_ends_the_run_after_whole_calls(small_model):
    graph, state = recipe.init_state(small_model, NUMBERS)
    training = train.Training(graph, state, NUMBERS)
    steps = train.train(training, steps=10_000, minutes=1e-6, steps_per_call=2)
    assert steps == 2
    assert int(training.state.step) == 2


def test_a_loss_that_is_not_finite_stops_the_run(small_model):
    numbers = dataclasses.replace(NUMBERS, learning_rate=float("inf"))
    graph, state = recipe.init_state(small_model, numbers)
    training = train.Training(graph, state, numbers)
    with pytest.raises(FloatingPointError, match="not finite at step 4"):
        train.train(training, steps=4, steps_per_call=4)


def test_timesteps_cover_the_schedule_and_favour_high_noise():
    numbers = recipe.Recipe(batch=4096, high_noise_share=0.3, high_noise_from=700)
    drawn = np.asarray(recipe.sample_timesteps(jax.random.key(0), numbers, 1000))
    assert drawn.min() <= 1
    assert drawn.max() == 999
    # A share of 0.3, and 0.3 of the uniform 0.7.
    assert (drawn >= 700).mean() == pytest.approx(0.51, abs=0.005)
    assert (drawn < 350).mean() == pytest.approx(0.245, abs=0.005)
    assert not (np.diff(drawn) > 0).all()


def test_uniform_timesteps_without_a_high_noise_share():
    numbers = recipe.Recipe(batch=1000, high_noise_share=0.0)
    drawn = np.asarray(recipe.sample_timesteps(jax.random.key(0), numbers, 1000))
    assert len(set(drawn.tolist())) >= 995


def test_learning_rate_warms_up_and_follows_a_cosine():
    numbers = recipe.Recipe(learning_rate=1.0, warmup=10, final_fraction=0.1)
    rates = [
        float(recipe.learning_rate(numbers, jnp.int32(step), SPAN))
        for step in (0, 9, 50, 100, 150)
    ]
    np.testing.assert_allclose(rates, [0.1, 0.982, 0.55, 0.1, 0.1], atol=2e-3)


def test_the_second_call_of_a_plan_warms_up_and_ends_the_cosine():
    numbers = recipe.Recipe(learning_rate=1.0, warmup=10, final_fraction=0.1)
    span = recipe.Span(jnp.int32(200), jnp.int32(100), (0.5, 1.0))
    rates = [
        float(recipe.learning_rate(numbers, jnp.int32(step), span))
        for step in (200, 210, 250, 300)
    ]
    half = 0.1 + 0.9 * (0.5 + 0.5 * np.cos(0.75 * np.pi))
    np.testing.assert_allclose(rates, [0.055, 0.479, half, 0.1], atol=1e-3)


def test_shifted_timesteps_follow_the_schedule_of_the_sampler():
    numbers = recipe.Recipe(batch=4096, timestep_shift=3.0)
    drawn = np.asarray(recipe.sample_timesteps(jax.random.key(0), numbers, 1000))
    expected = UniPC(flow_shift=3.0).sigmas(1000)[:-1] * 1000
    quantiles = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(
        np.quantile(drawn, quantiles), np.quantile(expected, quantiles), atol=5.0
    )
    assert drawn.dtype == np.float32


def test_numbers_out_of_range_are_all_named():
    with pytest.raises(ValueError, match="batch: expected > 0, found 0") as error:
        recipe.Recipe(batch=0, caption_dropout=1.0, dtype="float16")
    assert "caption_dropout" in str(error.value)
    assert "float16" in str(error.value)


_TWO_DEVICES = """
import jax, numpy as np
from flax import nnx
from sixbit_jax.demo import model, recipe, train
from tests.sixbit_jax.demo.test_recipe import NUMBERS, SMALL
assert len(jax.devices()) == 2
losses = []
for count in (1, 2):
    graph, state = recipe.init_state(model.COGVIDEOX.new(0, SMALL), NUMBERS)
    training = train.Training(graph, state, NUMBERS)
    train.train(training, steps=8, steps_per_call=4, devices=jax.devices()[:count])
    assert len(training.state.step.sharding.device_set) == count
    losses.append([record["loss"] for record in training.records])
assert losses[0][0] != losses[0][1]
np.testing.assert_allclose(*losses, rtol=1e-4)
assert len(jax.tree.leaves(nnx.state(training.averaged_model()))[0].devices()) == 1
print("same")
"""


@pytest.mark.slow
def test_two_devices_train_as_one_does():
    done = subprocess.run(
        [sys.executable, "-c", _TWO_DEVICES],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("same\n")


def test_a_batch_that_does_not_divide_is_refused(small_model):
    graph, _ = recipe.init_state(small_model, NUMBERS)
    with pytest.raises(ValueError, match="expected a multiple of the 3 devices"):
        recipe.make_train_steps(
            graph, NUMBERS, model.demo_scheduler(), 1, devices=jax.devices()[:1] * 3
        )
