"""The small world: its combinations, its videos, and reading them back."""

import functools

import jax
import numpy as np
import pytest

from sixbit_jax.demo.latent import render, scorer, world


@functools.cache
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Attribute vectors, their videos, and what is read from them."""
    rows = np.asarray(world.sample_rows(jax.random.key(5), 16))
    make = jax.jit(render.make_videos)
    videos = np.asarray(make(jax.random.key(6), rows))
    return rows, videos, np.asarray(scorer.read(videos).rows)


def test_combinations_have_two_colours_and_one_in_ten_is_held_out():
    rows = world.combinations()
    assert len(rows) == 57_600
    assert (rows[:, 1] != rows[:, 4]).all()
    held = world.is_held_out(rows)
    assert 0.095 < held.mean() < 0.105
    # Every value of every attribute is seen in training.
    for column, names in enumerate(world.NAMES.values()):
        assert len(np.unique(rows[~held, column])) == len(names)


def test_the_held_out_combinations_never_change():
    rows = world.combinations()
    numbers = np.flatnonzero(world.is_held_out(rows))
    assert numbers[:5].tolist() == [5, 6, 7, 19, 44]


def test_samples_are_combinations():
    rows = np.asarray(world.sample_rows(jax.random.key(0), 4096))
    assert (rows[:, 1] != rows[:, 4]).all()
    for column, names in enumerate(world.NAMES.values()):
        assert np.unique(rows[:, column]).tolist() == list(range(len(names)))


def test_videos_are_a_function_of_the_key():
    rows = np.asarray(world.sample_rows(jax.random.key(1), 2))
    make = jax.jit(functools.partial(render.make_videos, frames=2, size=32))
    first, again = (np.asarray(make(jax.random.key(2), rows)) for _ in range(2))
    other = np.asarray(make(jax.random.key(3), rows))
    assert first.shape == (2, 2, 3, 32, 32)
    assert first.min() >= -1
    assert first.max() <= 1
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


@pytest.mark.slow
def test_attributes_are_read_back_from_pixels():
    rows, _, read = drawn()
    assert (read == rows).mean() >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("name", list(world.NAMES))
def test_a_wrong_attribute_is_found_wrong(name: str):
    rows, _, read = drawn()
    column, count = list(world.NAMES).index(name), len(world.NAMES[name])
    wrong = rows.copy()
    wrong[:, column] = (wrong[:, column] + 1) % count
    assert (read[:, column] == wrong[:, column]).mean() <= 0.01


@pytest.mark.slow
def test_scores_count_what_is_right():
    rows, videos, _ = drawn()
    wrong = rows[:2].copy()
    wrong[0, 6] = 1 - wrong[0, 6]
    found = scorer.score(videos[:2], wrong)
    assert found["tone"] == 0.5
    assert found["shape"] == 1
    assert found["attribute_score"] == 15 / 16
    assert found["all_right"] == 0.5


@pytest.mark.slow
def test_noise_shows_nothing():
    noise = np.random.default_rng(0).uniform(-1, 1, (1, 4, 3, 128, 128))
    read = np.asarray(scorer.read(noise.astype(np.float32)).rows)[0]
    assert read[0] == -1
    assert read[3] == -1


def test_videos_of_another_size_are_refused():
    with pytest.raises(ValueError, match="128"):
        scorer.read(np.zeros((1, 4, 3, 64, 64), np.float32))
