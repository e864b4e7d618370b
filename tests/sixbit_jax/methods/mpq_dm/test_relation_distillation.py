"""The memory of teacher features and the divergence over it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.methods.mpq_dm.relation_distillation import (
    Contrast,
    MTRDOptions,
    draw,
    empty_memory,
    frame_features,
    relation_divergence,
    relations,
    remember,
)

STEPS, WIDTH, FRAMES = 5, 8, 2


def features(batch: int, seed: int = 0) -> jax.Array:
    found = np.random.default_rng(seed).standard_normal((batch, FRAMES, WIDTH))
    return jnp.float32(found / np.linalg.norm(found, axis=-1, keepdims=True))


def contrast(seed: int = 1) -> Contrast:
    valid = np.arange(6) != 2
    return Contrast(features(3, seed).reshape(6, WIDTH), jnp.asarray(valid))


def test_features_are_frame_means_of_length_one():
    stream = np.random.default_rng(0).standard_normal((3, 1 + 2 * 4, WIDTH))
    found = frame_features(jnp.float32(stream), frames=2, text_rows=1)
    second = stream[1, 5:].mean(0)
    np.testing.assert_allclose(
        found[1, 1], second / np.linalg.norm(second), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1.0, rtol=1e-5)
    with pytest.raises(ValueError, match="1 text tokens and 3 frames"):
        frame_features(jnp.float32(stream), frames=3, text_rows=1)


def test_queues_keep_the_newest_features_of_their_step():
    memory = empty_memory(STEPS, WIDTH, MTRDOptions(capacity=6, length=4))
    first, second = features(3, 1), features(1, 2)
    memory = remember(memory, first, jnp.asarray([3, 0, 3]))
    memory = remember(memory, second, jnp.asarray([3]))
    np.testing.assert_array_equal(memory.count, [2, 0, 0, 6, 0])
    np.testing.assert_array_equal(memory.features[0, :2], first[1])
    # Two examples fill the four places of step 3; the third goes over the first.
    np.testing.assert_array_equal(memory.features[3, :2], second[0])
    np.testing.assert_array_equal(memory.features[3, 2:4], first[2])
    np.testing.assert_array_equal(memory.features[3, 4:], 0.0)


def test_draws_cross_steps_and_only_find_filled_places():
    memory = empty_memory(STEPS, WIDTH, MTRDOptions(capacity=6))
    after, nothing = draw(memory, 64)
    assert not nothing.valid.any()
    memory = remember(memory, features(2, 1), jnp.asarray([1, 4]))
    after, found = draw(memory, 64)
    assert found.valid.all()
    held = np.concatenate([memory.features[1, :2], memory.features[4, :2]])
    rows = {row.tobytes() for row in held}
    drawn = {row.tobytes() for row in np.asarray(found.features)}
    assert drawn == rows
    _, again = draw(memory, 64)
    _, other = draw(after, 64)
    np.testing.assert_array_equal(again.features, found.features)
    assert not np.array_equal(other.features, found.features)


def test_divergence_is_that_of_the_definition():
    student, teacher, drawn = features(2, 3), features(2, 4), contrast()
    found = relation_divergence(student, teacher, drawn, jnp.float32(0.2))
    kept = np.asarray(drawn.features)[np.asarray(drawn.valid)].astype(np.float64)

    def probabilities(f):
        exponent = np.exp(np.asarray(f, np.float64) @ kept.T / 0.2)
        return exponent / exponent.sum(-1, keepdims=True)

    p, q = probabilities(teacher), probabilities(student)
    expected = (p * np.log(p / q)).sum(-1).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(
        jnp.exp(relations(student, drawn, jnp.float32(0.2)))[..., drawn.valid],
        q,
        rtol=1e-4,
    )
    same = relation_divergence(teacher, teacher, drawn, jnp.float32(0.2))
    np.testing.assert_allclose(same, 0.0, atol=1e-6)


def test_gradient_goes_to_the_student_alone():
    def loss(student, teacher, drawn):
        contrast_set = Contrast(drawn, contrast().valid)
        return relation_divergence(student, teacher, contrast_set, jnp.float32(0.2))

    given = features(2, 3), features(2, 4), contrast().features
    to_student, to_teacher, to_queue = jax.grad(loss, (0, 1, 2))(*given)
    assert jnp.abs(to_student).max() > 1e-3
    np.testing.assert_array_equal(to_teacher, 0.0)
    np.testing.assert_array_equal(to_queue, 0.0)
    # A step against it makes the student's relations more like the teacher's.
    student, teacher, drawn = given
    assert loss(student - 0.1 * to_student, teacher, drawn) < loss(*given)


def test_an_empty_memory_costs_nothing():
    _, nothing = draw(empty_memory(STEPS, WIDTH, MTRDOptions()), 6)

    def loss(student):
        return relation_divergence(student, features(2), nothing, jnp.float32(0.2))

    value, gradient = jax.value_and_grad(loss)(features(2, 3))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_refuses_numbers_that_make_no_memory():
    with pytest.raises(ValueError, match=r"draws.*\n.*length.*\n.*temperature"):
        MTRDOptions(draws=0, length=65, temperature=0.0)
    with pytest.raises(ValueError, match="places for the 2 frames"):
        remember(
            empty_memory(STEPS, WIDTH, MTRDOptions(capacity=1)),
            features(1),
            jnp.asarray([0]),
        )
    with pytest.raises(ValueError, match="weight: expected >= 0"):
        MTRDOptions(weight=-1.0)
