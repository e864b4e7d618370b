"""The analytic scorer, on videos whose attributes are known."""

import jax
import numpy as np
import pytest

from sixbit_jax.demo import data, scorer, vocabulary

COUNT = 240


@pytest.fixture(scope="module")
def truth():
    rows = vocabulary.combinations()
    rows = rows[np.random.default_rng(0).permutation(len(rows))[:COUNT]]
    videos = jax.jit(data.make_videos)(jax.random.key(0), rows)
    return np.asarray(videos), [vocabulary.caption_of(row) for row in rows], rows


def blur(videos, sigma):
    taps = np.exp(-0.5 * (np.arange(-2, 3) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (-1, -2):
        width = [(2, 2) if i == axis % 5 else (0, 0) for i in range(5)]
        padded = np.pad(videos, width, mode="edge")
        size = videos.shape[axis]
        videos = sum(
            tap * padded.take(np.arange(i, i + size), axis)
            for i, tap in enumerate(taps)
        )
    return videos


def distort(videos, kind):
    noise = np.random.default_rng(1).standard_normal(videos.shape)
    match kind:
        case "noise":
            return videos + 0.1 * noise
        case "blur":
            return blur(videos, 0.8)
        case "blur and noise":
            return blur(videos, 0.8) + 0.1 * noise
        case "oversaturated":
            return 3 * videos
        case "pale":
            return 0.7 * videos
    return videos


@pytest.mark.parametrize(
    "kind", ["clean", "noise", "blur", "blur and noise", "oversaturated", "pale"]
)
def test_ground_truth_is_read_right(truth, kind):
    videos, captions, _ = truth
    result = scorer.score(distort(videos, kind), captions)
    for name, value in zip(vocabulary.ATTRIBUTES, result, strict=True):
        assert value.mean() >= 0.99, name


@pytest.mark.parametrize("attribute", range(4))
def test_a_wrong_word_makes_exactly_its_attribute_wrong(truth, attribute):
    videos, _, rows = truth
    by_rest = {}
    for row in vocabulary.combinations():
        rest = tuple(np.delete(row, attribute))
        by_rest.setdefault(rest, []).append(row)
    wrong = []
    for row in rows:
        others = by_rest[tuple(np.delete(row, attribute))]
        wrong.append(next(other for other in others if (other != row).any()))
    captions = [vocabulary.caption_of(row) for row in wrong]
    correct = scorer.score(videos, captions).correct
    assert correct[:, attribute].mean() <= 0.01
    assert np.delete(correct, attribute, axis=1).mean() >= 0.99


def test_captions_of_other_videos_score_near_chance(truth):
    videos, captions, _ = truth
    rolled = captions[1:] + captions[:1]
    assert scorer.score(videos, rolled).attribute_score < 0.35


@pytest.mark.parametrize("value", ["noise", "plain", "nan"])
def test_nothing_is_read_where_nothing_is_shown(truth, value):
    _, captions, _ = truth
    shape = (8, 13, 3, 32, 32)
    videos = {
        "noise": np.random.default_rng(0).standard_normal(shape),
        "plain": np.full(shape, -1.0),
        "nan": np.full(shape, np.nan),
    }[value]
    reading = scorer.read(videos)
    assert (np.asarray(reading.shape) == -1).all()
    assert (np.asarray(reading.colour) == -1).all()
    assert (np.asarray(reading.motion) == -1).all()
    assert not scorer.score(videos, captions[:8]).shape.any()


def test_a_frozen_video_has_no_motion(truth):
    videos, _, rows = truth
    reading = scorer.read(np.repeat(videos[:, :1], 13, axis=1))
    assert (np.asarray(reading.motion) == -1).all()
    np.testing.assert_array_equal(reading.shape, rows[:, 0])


def test_shuffled_frames_do_not_pass_as_motion(truth):
    videos, captions, _ = truth
    reversed_videos = videos[:, ::-1]
    assert scorer.score(reversed_videos, captions).motion.mean() <= 0.01


def test_summary_averages_over_attributes_and_videos():
    right, wrong = np.array([True, True]), np.array([True, False])
    summary = scorer.Scores(right, right, right, wrong).summary()
    assert summary["motion"] == 0.5
    assert summary["attribute_score"] == pytest.approx(7 / 8)
    assert summary["all_right"] == 0.5


def test_counts_and_shapes_that_do_not_fit_are_named(truth):
    videos, captions, _ = truth
    with pytest.raises(ValueError, match="240 videos and 3 captions"):
        scorer.score(videos, captions[:3])
    with pytest.raises(ValueError, match=r"\(1, 13, 32, 32, 3\)"):
        scorer.read(np.zeros((1, 13, 32, 32, 3)))
