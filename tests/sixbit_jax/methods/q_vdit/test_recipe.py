"""The recipe tunes, packs, and composes with caches and bit switching."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sixbit_jax
from sixbit_jax.demo.model import demo_scheduler
from sixbit_jax.formats import UniformArray
from sixbit_jax.formats.corrected import CorrectedArray
from sixbit_jax.methods.q_vdit.recipe import q_vdit
from sixbit_jax.methods.q_vdit.tune import rates_for
from sixbit_jax.routes import Route
from sixbit_jax.tuning.loop import TuneOptions
from tests.sixbit_jax.tuning.runs import LATENTS, prompts, teacher, trajectories

RECIPE = q_vdit(weight_bits=3, inner_rank=2)


@pytest.fixture(scope="module")
def tuned():
    return RECIPE.quantize(
        teacher(),
        trajectories=trajectories(),
        loop=TuneOptions(iterations=6, batch=2, iterations_per_call=3),
        learning_rates={"estimator": 1e-2},
        devices=jax.devices()[:1],
    )


def sample(model, policy, shape=LATENTS):
    return sixbit_jax.sample(
        model,
        demo_scheduler(),
        prompts(1),
        latent_shape=shape,
        num_steps=6,
        guidance=1.0,
        policy=policy,
        execution=sixbit_jax.Execution(dtype=jnp.float32, **RECIPE.sampling()),
    )


def stored(model):
    values = [v.get_value() for _, v in nnx.to_flat_state(nnx.state(model))]
    return [v for v in values if not isinstance(v, jax.Array)]


def test_tuned_weights_are_packed_with_their_correction(tuned):
    weights = stored(tuned)
    assert len(weights) == 6
    assert all(isinstance(weight, CorrectedArray) for weight in weights)
    assert {weight.weight.bits for weight in weights} == {3}
    assert min(float(jnp.abs(weight.up).max()) for weight in weights) > 0


def test_it_runs_with_a_delta_cache_and_with_bit_switching(tuned):
    plain = sample(tuned, RECIPE.policy(tuned))
    assert set(np.unique(plain.trace.route)) == {Route.INT6}
    cached = sample(tuned, RECIPE.policy(tuned, tau=100.0))
    assert cached.trace.skip.any()
    assert np.isfinite(cached.latents).all()
    switched = sample(tuned, RECIPE.policy(tuned, delta=1e-6))
    assert set(np.unique(switched.trace.route)) <= {Route.INT6, Route.INT8}
    assert (switched.trace.route == Route.INT8).any()


def test_attention_only_keeps_feed_forward_linears_at_eight_bits():
    recipe = q_vdit(weight_bits=4, scope="attention")
    model = recipe.quantize(teacher())
    weights = stored(model)
    assert all(isinstance(weight, UniformArray) for weight in weights)
    assert sorted(weight.bits for weight in weights) == [4, 4, 4, 4, 8, 8]
    found = sample(model, recipe.policy(model))
    assert np.unique(found.trace.route[..., :2]) == Route.INT6
    assert np.unique(found.trace.route[..., 2:]) == Route.INT8


def test_other_numbers_of_frames_are_refused(tuned):
    with pytest.raises(ValueError, match=r"6 text rows and 3 frames of equal size"):
        sample(tuned, RECIPE.policy(tuned), (4, *LATENTS[1:]))


def test_bad_options_are_refused(tuned):
    with pytest.raises(ValueError, match=r"activation_bits: expected one of \[4, 6, 8"):
        q_vdit(activation_bits=5)
    with pytest.raises(ValueError, match="weight_bits: expected 3 to 8"):
        q_vdit(weight_bits=2)
    with pytest.raises(ValueError, match="one of tau and step_threshold"):
        RECIPE.policy(tuned, tau=1.0, step_threshold=1.0)
    with pytest.raises(ValueError, match="between fewer bits and 8"):
        q_vdit(activation_bits=8).policy(tuned, delta=0.1)
    with pytest.raises(TypeError, match="expected trajectories with loop"):
        RECIPE.quantize(teacher(), loop=TuneOptions())
    with pytest.raises(ValueError, match=r"found \['inner'\]"):
        rates_for(sixbit_jax.methods.q_vdit.method.QVDiTOptions(), {"inner": 1.0})
