"""The procedural videos."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.demo import data, vocabulary


@pytest.fixture(scope="module")
def rows():
    return data.sample_attributes(jax.random.key(0), 64)


def test_videos_have_the_promised_shape_and_range(rows):
    videos = jax.jit(data.make_videos)(jax.random.key(1), rows)
    assert videos.shape == (64, 13, 3, 32, 32)
    assert videos.dtype == jnp.float32
    assert float(jnp.abs(videos).max()) == 1.0


def test_one_key_gives_one_video_and_another_key_another(rows):
    make = jax.jit(data.make_videos)
    first, again, other = (make(jax.random.key(k), rows) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - other).max()) > 1


def test_shapes_stay_inside_the_frame():
    motion = jnp.arange(600) % len(vocabulary.MOTION_NAMES)
    path = data.sample_trajectories(jax.random.key(3), motion)
    low = path.centre - path.radius[..., None]
    high = path.centre + path.radius[..., None]
    assert float(low.min()) >= 0
    assert float(high.max()) <= data.SIZE


@pytest.mark.parametrize("shape", range(len(vocabulary.SHAPES)))
def test_area_and_centroid_constants_describe_the_outline(shape):
    radius = 9.0
    drawn = np.asarray(
        data.coverage(shape, jnp.array([16.0, 15.0]), jnp.array(radius)), np.float64
    )
    grid = np.arange(data.SIZE) + 0.5
    area = drawn.sum()
    assert area == pytest.approx(data.AREAS[shape] * radius**2, rel=0.03)
    assert (drawn.sum(0) @ grid) / area == pytest.approx(16.0, abs=0.05)
    below = 15.0 + data.CENTROID_OFFSETS[shape] * radius
    assert (drawn.sum(1) @ grid) / area == pytest.approx(below, abs=0.1)


def test_sampled_attributes_respect_the_held_out_split():
    seen = np.asarray(data.sample_attributes(jax.random.key(0), 500))
    held_out = data.sample_attributes(jax.random.key(0), 100, held_out=True)
    assert not vocabulary.is_held_out(seen).any()
    assert vocabulary.is_held_out(np.asarray(held_out)).all()
