"""Metrics of pixel videos `[..., frames, height, width, channels]`."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

Video = Num[Array | np.ndarray, "*batch frames height width channels"]

_WINDOW = 11
_SIGMA = 1.5


def psnr(
    video: Video,
    reference: Video,
    *,
    data_range: float,
) -> Float[Array, "*batch"]:
    """Peak signal-to-noise ratio: 10 log10(data_range^2 / MSE).

    The mean squared error is taken over the whole video, and not per frame.

    Args:
      video: pixels.
      reference: pixels of the video to compare with, same shape.
      data_range: largest minus smallest possible pixel value: 2 for pixels in
        [-1, 1], 255 for bytes.

    Returns:
      PSNR of each video in dB, float32; infinite for equal videos.

    Raises:
      ValueError: for different shapes, too few axes or a range that is not positive.
    """
    video, reference = _checked("psnr", video, reference, data_range)
    error = jnp.mean(jnp.square(video - reference), axis=(-4, -3, -2, -1))
    return 10 * (2 * math.log10(data_range) - jnp.log10(error))


def ssim(
    video: Video,
    reference: Video,
    *,
    data_range: float,
) -> Float[Array, "*batch"]:
    """Structural similarity (Wang et al. 2004, IEEE TIP 13(4), equation 13).

    Per frame and channel with a Gaussian window of 11x11 pixels and standard deviation
    1.5, only where the window lies inside of the frame; K1 = 0.01, K2 = 0.03; the mean
    over all positions, channels and frames.

    Args:
      video: pixels; height and width at least 11.
      reference: pixels of the video to compare with, same shape.
      data_range: largest minus smallest possible pixel value.

    Returns:
      SSIM of each video, float32, 1 for equal videos.

    Raises:
      ValueError: for different shapes, too few axes, frames smaller than the window or
        a range that is not positive.
    """
    video, reference = _checked("ssim", video, reference, data_range)
    *batch, frames, height, width, channels = video.shape
    if min(height, width) < _WINDOW:
        raise ValueError(
            f"ssim: expected frames of at least {_WINDOW}x{_WINDOW} pixels, found "
            f"{height}x{width}"
        )
    rows, columns = _window_matrix(height), _window_matrix(width)
    constants = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2

    def frame_ssim(pair: tuple[Array, Array]) -> Float[Array, ""]:
        return _frame_ssim(*pair, rows, columns, constants)

    # A few frames at a time: the five filtered maps of a long video are large.
    shape = (-1, height, width, channels)
    values = jax.lax.map(
        frame_ssim, (video.reshape(shape), reference.reshape(shape)), batch_size=8
    )
    return values.reshape(*batch, frames).mean(-1)


def temporal_consistency(
    video: Video,
) -> Float[Array, "*batch"]:
    """Mean cosine similarity of consecutive frames, each a flat vector of its pixels.

    1 for a video that does not change. It measures flicker and motion alike and has
    no reference: compare it between videos of the same captions and seeds. Pixels must
    be centred (in [-1, 1]); on [0, 1] a constant offset hides the differences. A pair
    of all-zero frames counts 1, a pair with one all-zero frame 0.

    Args:
      video: pixels; at least two frames.

    Returns:
      A value in [-1, 1] per video, float32.

    Raises:
      ValueError: for too few axes or a single frame.
    """
    video = _float32("temporal_consistency", video)
    if video.shape[-4] < 2:
        raise ValueError(
            "temporal_consistency: expected at least two frames, found video of shape "
            f"{video.shape}"
        )
    frames = video.reshape(*video.shape[:-3], -1)
    norms = jnp.linalg.norm(frames, axis=-1)
    unit = frames / jnp.where(norms > 0, norms, 1)[..., None]
    similarity = jnp.sum(unit[..., 1:, :] * unit[..., :-1, :], axis=-1)
    both_zero = (norms[..., 1:] == 0) & (norms[..., :-1] == 0)
    return jnp.where(both_zero, 1.0, similarity).mean(-1)


def _float32(name: str, video: Num[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
    video = jnp.asarray(video)
    if video.ndim < 4:
        raise ValueError(
            f"{name}: expected a video [..., frames, height, width, channels], found "
            f"shape {video.shape}"
        )
    return video.astype(jnp.float32)


def _checked(
    name: str,
    video: Num[Array | np.ndarray, "..."],
    reference: Num[Array | np.ndarray, "..."],
    data_range: float,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    video, reference = _float32(name, video), _float32(name, reference)
    if video.shape != reference.shape:
        raise ValueError(
            f"{name}: expected two videos of one shape, found {video.shape} and "
            f"{reference.shape}"
        )
    if not data_range > 0:
        raise ValueError(f"{name}: expected a positive data_range, found {data_range}")
    return video, reference


def _window_matrix(size: int) -> np.ndarray:
    """Gaussian filter of one axis as a matrix [size - 10, size], float32."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    matrix = np.zeros((size - _WINDOW + 1, size), np.float32)
    for row in range(len(matrix)):
        matrix[row, row : row + _WINDOW] = weights
    return matrix


def _frame_ssim(
    frame: Float[Array, "height width channels"],
    reference: Float[Array, "height width channels"],
    rows: np.ndarray,
    columns: np.ndarray,
    constants: tuple[float, float],
) -> Float[Array, ""]:
    def local_mean(image: Float[Array, "height width channels"]) -> Array:
        # Full precision: TF32 would lose the variances, differences of large numbers.
        return jnp.einsum(
            "ih,jw,hwc->ijc", rows, columns, image, precision=jax.lax.Precision.HIGHEST
        )

    mean, reference_mean = local_mean(frame), local_mean(reference)
    variance = local_mean(frame**2) - mean**2
    reference_variance = local_mean(reference**2) - reference_mean**2
    covariance = local_mean(frame * reference) - mean * reference_mean
    c1, c2 = constants
    luminance = (2 * mean * reference_mean + c1) / (mean**2 + reference_mean**2 + c1)
    structure = (2 * covariance + c2) / (variance + reference_variance + c2)
    return jnp.mean(luminance * structure)


__all__ = ["psnr", "ssim", "temporal_consistency"]
