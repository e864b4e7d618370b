"""Relations of frames, against numbers worked out by hand and in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.tuning.losses import (
    frame_relations,
    mean_squared_error,
    temporal_maintenance,
)


def video(*frames):
    """[1, F, 1, 1, values]"""
    return jnp.asarray(frames, jnp.float32)[None, :, None, None, :]


def test_relations_are_cosines_between_frames():
    found = frame_relations(video([1, 0], [0, 2], [3, 3]))[0]
    half = np.sqrt(0.5)
    expected = [[1, 0, half], [0, 1, half], [half, half, 1]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_loss_of_two_frames_by_hand():
    # Teacher: orthogonal frames; student: equal frames, whose softmax is 1/2, 1/2.
    teacher, student = video([1, 0], [0, 1]), video([1, 0], [1, 0])
    p = np.e / (1 + np.e)
    row = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))
    found = temporal_maintenance(student, teacher)
    np.testing.assert_allclose(found, 2 * row, rtol=1e-5)


def test_loss_is_the_mean_over_the_batch_of_the_sum_over_frames():
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((2, 3, 5, 2, 4, 4)).astype(np.float32)

    def distributions(videos):
        flat = videos.reshape(*videos.shape[:2], -1).astype(np.float64)
        unit = flat / np.linalg.norm(flat, axis=-1, keepdims=True)
        raised = np.exp(unit @ unit.swapaxes(1, 2))
        return raised / raised.sum(-1, keepdims=True)

    p, q = distributions(teacher), distributions(student)
    expected = (p * np.log(p / q)).sum((1, 2)).mean()
    found = temporal_maintenance(jnp.asarray(student), jnp.asarray(teacher))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_frames_are_the_second_axis_and_not_channels():
    """The released code reshapes [B, C, T, H, W] to frames, which mixes both."""
    rng = np.random.default_rng(1)
    frames_first = jnp.asarray(rng.standard_normal((1, 3, 4, 2, 2)), jnp.float32)
    # A relation between whole frames does not depend on the order of their channels.
    shuffled = frames_first[:, :, ::-1]
    np.testing.assert_allclose(
        frame_relations(frames_first), frame_relations(shuffled), atol=1e-6
    )
    channels_first = frames_first.transpose(0, 2, 1, 3, 4)
    wrong = frame_relations(channels_first.reshape(1, 3, 4, 2, 2))
    assert np.abs(wrong - frame_relations(frames_first)).max() > 0.1


def test_equal_videos_have_no_loss_and_no_gradient():
    x = jax.random.normal(jax.random.key(0), (2, 3, 1, 2, 2))
    loss, gradient = jax.value_and_grad(temporal_maintenance)(x, x)
    assert abs(loss) < 1e-6
    assert np.abs(gradient).max() < 1e-6


@pytest.mark.parametrize("loss", [temporal_maintenance, mean_squared_error])
def test_gradient_reaches_the_student_only(loss):
    x, y = jax.random.normal(jax.random.key(0), (2, 2, 3, 1, 2, 2))
    student, teacher = jax.grad(loss, argnums=(0, 1))(x, y)
    assert np.abs(student).max() > 1e-3
    assert np.abs(teacher).max() == 0


def test_a_student_that_follows_the_gradient_gets_the_teachers_relations():
    teacher, student = video([1, 0], [0, 1]), video([1, 0.1], [1, 0.3])
    step = jax.jit(lambda x: x - 2.0 * jax.grad(temporal_maintenance)(x, teacher))
    before = temporal_maintenance(student, teacher)
    for _ in range(200):
        student = step(student)
    assert temporal_maintenance(student, teacher) < 0.01 * before


def test_an_empty_frame_has_a_finite_gradient():
    gradient = jax.grad(temporal_maintenance)(
        video([0, 0], [1, 0]), video([1, 0], [0, 1])
    )
    assert np.isfinite(gradient).all()


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected \[batch, F, C, H, W\], found"):
        frame_relations(jnp.zeros((3, 4, 4)))
