"""PSNR, SSIM and temporal consistency on closed forms and brute force."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.metrics import psnr, ssim, temporal_consistency


def random_video(seed: int, shape=(2, 3, 14, 17, 3)) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def brute_force_ssim(x: np.ndarray, y: np.ndarray, data_range: float) -> float:
    """SSIM of one video, window by window in float64."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    frames, height, width, channels = x.shape
    values = []
    for f in range(frames):
        for c in range(channels):
            for i in range(height - 10):
                for j in range(width - 10):
                    a = x[f, i : i + 11, j : j + 11, c].astype(np.float64)
                    b = y[f, i : i + 11, j : j + 11, c].astype(np.float64)
                    ma, mb = (window * a).sum(), (window * b).sum()
                    va = (window * (a - ma) ** 2).sum()
                    vb = (window * (b - mb) ** 2).sum()
                    cov = (window * (a - ma) * (b - mb)).sum()
                    values.append(
                        (2 * ma * mb + c1)
                        * (2 * cov + c2)
                        / ((ma**2 + mb**2 + c1) * (va + vb + c2))
                    )
    return float(np.mean(values))


@pytest.mark.parametrize("data_range", [1.0, 2.0, 255.0])
def test_psnr_of_a_constant_offset(data_range):
    reference = jnp.zeros((2, 3, 4, 5, 3))
    error = jnp.array([0.1, 0.01]) * data_range
    video = reference + error[:, None, None, None, None]
    actual = psnr(video, reference, data_range=data_range)
    np.testing.assert_allclose(actual, [20.0, 40.0], rtol=1e-5)


def test_psnr_takes_the_error_over_the_whole_video():
    reference = np.zeros((2, 4, 4, 3), np.float32)
    video = reference.copy()
    video[1] = 0.2
    actual = psnr(video, reference, data_range=1.0)
    np.testing.assert_allclose(actual, -10 * math.log10(0.2**2 / 2), rtol=1e-5)


def test_psnr_of_equal_videos_is_infinite():
    video = random_video(0)
    assert np.isposinf(psnr(video, video, data_range=2.0)).all()


def test_psnr_of_bytes_does_not_wrap_around():
    video = np.zeros((1, 4, 4, 3), np.uint8)
    reference = np.full_like(video, 255)
    np.testing.assert_allclose(psnr(video, reference, data_range=255.0), 0, atol=1e-4)


@pytest.mark.parametrize("noise", [0.05, 0.5, 2.0])
def test_ssim_equals_brute_force(noise):
    reference = random_video(1)
    video = reference + noise * random_video(2)
    actual = ssim(video, reference, data_range=2.0)
    expected = [
        brute_force_ssim(*pair, 2.0) for pair in zip(video, reference, strict=True)
    ]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_ssim_of_more_frames_than_one_chunk_is_the_mean_over_frames():
    reference = random_video(3, (11, 12, 12, 3))
    video = reference + 0.3 * random_video(4, reference.shape)
    each = [
        ssim(v[None], r[None], data_range=2.0)
        for v, r in zip(video, reference, strict=True)
    ]
    actual = ssim(video, reference, data_range=2.0)
    assert actual.shape == ()
    np.testing.assert_allclose(actual, np.mean(each), rtol=1e-5)


def test_ssim_of_equal_videos_is_one_and_it_is_symmetric():
    video, other = random_video(5), random_video(6)
    np.testing.assert_allclose(ssim(video, video, data_range=2.0), 1, atol=1e-6)
    np.testing.assert_allclose(
        ssim(video, other, data_range=2.0),
        ssim(other, video, data_range=2.0),
        atol=1e-6,
    )


def test_ssim_of_constant_frames_is_the_luminance_term():
    video = jnp.full((1, 16, 16, 3), 0.5)
    reference = jnp.full((1, 16, 16, 3), 0.25)
    expected = (2 * 0.125 + 1e-4) / (0.25 + 0.0625 + 1e-4)
    actual = ssim(video, reference, data_range=1.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-3)


def test_metrics_are_traceable():
    video, reference = random_video(7), random_video(8)
    for metric in (psnr, ssim):
        compiled = jax.jit(lambda x, y, metric=metric: metric(x, y, data_range=2.0))
        np.testing.assert_allclose(
            compiled(video, reference), metric(video, reference, data_range=2.0), 1e-4
        )


def test_a_still_video_is_consistent_and_an_inverting_one_is_not():
    frame = random_video(9, (1, 8, 8, 3))
    still = np.concatenate([frame, 2 * frame, 0.5 * frame])
    inverting = np.concatenate([frame, -frame, frame])
    np.testing.assert_allclose(temporal_consistency(still), 1, rtol=1e-5)
    np.testing.assert_allclose(temporal_consistency(inverting), -1, rtol=1e-5)


def test_consistency_of_known_angles():
    video = np.zeros((3, 1, 1, 2), np.float32)
    video[:, 0, 0] = [[1, 0], [1, 1], [0, 3]]
    np.testing.assert_allclose(temporal_consistency(video), math.sqrt(0.5), rtol=1e-6)


def test_consistency_of_blank_frames():
    video = np.zeros((3, 2, 2, 3), np.float32)
    np.testing.assert_allclose(temporal_consistency(video), 1)
    video[2] = 0.5
    np.testing.assert_allclose(temporal_consistency(video), 0.5)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_videos_are_refused(metric):
    video = np.zeros((2, 16, 16, 3), np.float32)
    with pytest.raises(ValueError, match=r"\(2, 16, 16, 3\) and \(1, 16, 16, 3\)"):
        metric(video, video[:1], data_range=1.0)
    with pytest.raises(ValueError, match=r"found shape \(16, 16, 3\)"):
        metric(video[0], video[0], data_range=1.0)
    with pytest.raises(ValueError, match="positive data_range, found 0"):
        metric(video, video, data_range=0)


def test_frames_smaller_than_the_window_are_refused():
    video = np.zeros((2, 16, 10, 3), np.float32)
    with pytest.raises(ValueError, match="at least 11x11 pixels, found 16x10"):
        ssim(video, video, data_range=1.0)


def test_consistency_of_one_frame_is_refused():
    with pytest.raises(ValueError, match="at least two frames"):
        temporal_consistency(np.zeros((1, 4, 4, 3)))
