"""MPQ-DMv2 in the tuning loop: what is trained, what it remembers, what is stored."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sixbit_jax
from sixbit_jax.formats import ResidualArray
from sixbit_jax.formats.corrected import CorrectedArray
from sixbit_jax.methods.mpq_dm.method import (
    GROUPS,
    MPQDMOptions,
    mpq_dm_method,
    mpq_dm_start,
    with_memory,
)
from sixbit_jax.methods.mpq_dm.pack import fixed_params, packed_model
from sixbit_jax.methods.mpq_dm.relation_distillation import MTRDOptions
from sixbit_jax.tuning.forward import forward
from sixbit_jax.tuning.loop import TuneOptions, Tuner
from sixbit_jax.tuning.method import weight_names, weights_of
from tests.sixbit_jax.tuning.runs import NAME, TEXT_ROWS, teacher, trajectories

pytestmark = pytest.mark.slow
FRAMES = 3
MEMORY = MTRDOptions(capacity=12, draws=16, weight=0.1, temperature=0.2)
OPTIONS = MPQDMOptions(weight_bits=2, rank=4, memory=MEMORY)
RATES = {"levels": 1e-3, "outside": 1e-3, "inside": 0.0}


@functools.cache
def start(placement="outside"):
    options = MPQDMOptions(weight_bits=2, rank=4, memory=MEMORY, placement=placement)
    return mpq_dm_start(teacher(), options, num_steps=4)


@functools.cache
def tuner():
    method = mpq_dm_method(frames=FRAMES, text_rows=TEXT_ROWS, draws=16)
    options = TuneOptions(iterations=12, batch=2, iterations_per_call=4)
    return Tuner(teacher(), method, options, devices=jax.devices()[:1])


@functools.cache
def tuned():
    given = start()
    return tuner().run(tuner().init(given, RATES), given.frozen, trajectories())


def test_tuning_lowers_the_error_and_fills_the_memory():
    state, history = tuned()
    given = start()
    still = dict.fromkeys(GROUPS, 0.0)

    def error(trainable) -> float:
        """Of all 24 examples: iterations without learning."""
        begun = tuner().init(given._replace(trainable=trainable), still)
        _, found = tuner().run(begun, given.frozen, trajectories())
        return found["mse"].mean()

    assert error(state.trainable) < 0.97 * error(given.trainable)
    assert history["divergence"][0] == 0.0
    assert (history["divergence"][2:] > 0).all()
    memory = state.extra
    assert int(memory.count.sum()) == 12 * 2 * FRAMES
    filled = np.asarray(memory.count) > 0
    norms = np.linalg.norm(memory.features, axis=-1)[filled][:, :FRAMES]
    np.testing.assert_allclose(norms, 1.0, rtol=1e-4)


def test_groups_with_rate_zero_stay_as_they_are():
    state, history = tuned()
    given = start()
    assert set(state.trainable) == set(GROUPS)
    for leaf in jax.tree.leaves(state.trainable["inside"]):
        np.testing.assert_array_equal(leaf, 0.0)
    moved = (
        state.trainable["outside"][NAME]["up"] - given.trainable["outside"][NAME]["up"]
    )
    assert jnp.abs(moved).max() > 1e-4
    assert (history["gradient_levels"] > 0).all()


def test_the_divergence_reaches_the_student_and_nothing_else():
    given = start()
    method = tuner().method
    batch = jax.tree.map(jnp.asarray, trajectories().batch(np.arange(2)))
    graph, params = nnx.split(teacher())

    def run(params):
        return forward(
            graph, params, batch.latents, batch.text, batch.timestep, features=True
        )

    truth = run(params)
    _, memory, _ = method.loss(given.extra, truth, truth, batch)
    memory = memory._replace(weight=jnp.float32(1.0))

    def loss(trainable, truth, features):
        found = run(method.student(trainable, given.frozen))
        # Without the first term only the divergence has a gradient.
        found = found._replace(prediction=truth.prediction)
        return method.loss(memory._replace(features=features), found, truth, batch).loss

    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(
        given.trainable, truth, memory.features
    )
    to_student, to_teacher, to_memory = gradients
    assert jnp.abs(to_student["outside"][NAME]["up"]).max() > 0
    np.testing.assert_array_equal(to_teacher.features, 0.0)
    np.testing.assert_array_equal(to_memory, 0.0)


def test_weight_zero_is_plain_distillation():
    given = with_memory(start(), MTRDOptions(capacity=12, draws=16, weight=0.0))
    _, history = tuner().run(
        tuner().init(given, RATES),
        given.frozen,
        trajectories(),
        after_call=lambda *_: True,
    )
    np.testing.assert_array_equal(history["loss"], history["mse"])


def test_levels_get_the_gradient_of_their_codes():
    given = start("inside")
    method = tuner().method

    def squares(trainable):
        params = method.student(trainable, given.frozen)
        weight = weights_of(params, (NAME,))[NAME].weight.dequantize()
        return jnp.square(weight - given.frozen["weights"][NAME]).sum()

    gradient = jax.grad(squares)(given.trainable)
    levels = gradient["levels"][NAME]
    branches = given.frozen["rows"][NAME]["branches"]
    np.testing.assert_array_equal(levels["second"][branches < 2], 0.0)
    assert jnp.abs(levels["scale"]).max() > 0

    def change(step, *names):
        """Of the error (191), by a step of some levels against their gradient."""
        moved = {
            name: value - step * levels[name] if name in names else value
            for name, value in given.trainable["levels"][NAME].items()
        }
        others = {**given.trainable["levels"], NAME: moved}
        after = squares({**given.trainable, "levels": others})
        return float(after - squares(given.trainable))

    # Values beside the middle of two levels take another code whenever anything moves:
    # the error jumps by about 0.01 then, up or down, and by more than a short step
    # lowers it. A step that lowers it by 0.6 is told from that.
    assert change(3e-3, *levels) < -0.3
    # Where only the first levels move, no code changes: the step goes down as far as
    # the square of the gradient says.
    expected = -1e-4 * float(jnp.square(levels["first"]).sum())
    assert change(1e-4, "first") == pytest.approx(expected, rel=0.1)
    assert jnp.abs(gradient["inside"][NAME]["down"]).max() > 0


def test_outside_start_is_nearer_to_the_weights_than_inside():
    def distance(placement):
        given = start(placement)
        weights = weights_of(
            tuner().method.student(given.trainable, given.frozen),
            weight_names(teacher()),
        )
        return sum(
            float(
                jnp.square(
                    w.dequantize()
                    + jnp.einsum("lnr,lrk->lnk", w.up, w.down)
                    - given.frozen["weights"][name]
                ).sum()
            )
            for name, w in weights.items()
        )

    assert distance("outside") < distance(None)
    assert distance("outside") < distance("inside")


def test_packed_form_computes_what_was_tuned(tmp_path):
    state, _ = tuned()
    given = start()
    fixed = fixed_params(state.trainable, given.frozen, jnp.float32(2.0**20))
    packed = packed_model(teacher(), state.trainable, given.frozen, OPTIONS)
    stored = packed.transformer_blocks.ff.up.weight.get_value()
    assert isinstance(stored, CorrectedArray)
    assert isinstance(stored.weight, ResidualArray)
    expected = weights_of(fixed, (NAME,))[NAME].weight
    np.testing.assert_allclose(stored.dequantize(), expected, atol=1e-5)
    sixbit_jax.save(packed, tmp_path / "model")
    loaded, header = sixbit_jax.load(tmp_path / "model")
    again = loaded.transformer_blocks.ff.up.weight.get_value()
    np.testing.assert_array_equal(again.dequantize(), stored.dequantize())
    assert header.nbytes < 4 * sum(
        x.size for x in jax.tree.leaves(nnx.state(teacher()))
    )


def test_rotated_students_compute_the_same_product():
    options = MPQDMOptions(weight_bits=4, rotation=64, placement=None, memory=MEMORY)
    given = mpq_dm_start(teacher(), options, num_steps=4)
    fixed = fixed_params(
        given.trainable, given.frozen, jnp.float32(2.0**20), rotation=64
    )
    x = jnp.float32(np.random.default_rng(0).standard_normal((5, 128)))
    weight = jax.tree.map(lambda a: a[0], weights_of(fixed, (NAME,))[NAME])
    plain = weights_of(nnx.state(teacher()), (NAME,))[NAME][0]
    exact = x @ plain.T
    error = jnp.linalg.norm(weight.apply(x) - exact) / jnp.linalg.norm(exact)
    assert error < 0.15
    with pytest.raises(ValueError, match="expected no rotation beside"):
        packed_model(
            teacher(),
            given.trainable,
            given.frozen,
            MPQDMOptions(weight_bits=4, rotation=64),
        )


def test_refuses_unknown_placements():
    with pytest.raises(ValueError, match="placement: expected None or one of"):
        MPQDMOptions(placement="beside")
