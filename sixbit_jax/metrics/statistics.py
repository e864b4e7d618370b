"""Means with confidence intervals."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Interval(NamedTuple):
    """A mean and its two-sided confidence interval [low, high] over `count` values."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        """Half of the interval's width: mean ± half_width."""
        return (self.high - self.low) / 2


def mean_interval(values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Mean with Student's t confidence interval: m ± t s / sqrt(n).

    The values must be independent draws (seeds, captions); s is the sample standard
    deviation with n - 1.

    Args:
      values: finite numbers, at least two, of any shape.
      confidence: probability that the interval covers the mean, in (0, 1).

    Raises:
      ValueError: for fewer than two values, values that are not finite (the PSNR of
        equal videos) or a confidence outside of (0, 1).
    """
    array = np.asarray(values, np.float64).ravel()
    if array.size < 2:
        raise ValueError(
            f"mean_interval: expected at least 2 values, found {array.size}"
        )
    bad = array.size - np.isfinite(array).sum()
    if bad:
        raise ValueError(
            f"mean_interval: expected finite values, found {bad} of {array.size} not "
            "finite"
        )
    if not 0 < confidence < 1:
        raise ValueError(
            f"mean_interval: expected confidence in (0, 1), found {confidence}"
        )
    mean = float(array.mean())
    deviation = float(array.std(ddof=1))
    quantile = _two_sided_t(confidence, array.size - 1)
    half = quantile * deviation / math.sqrt(array.size)
    return Interval(mean, mean - half, mean + half, array.size)


def paired_interval(
    values: ArrayLike, baseline: ArrayLike, *, confidence: float = 0.95
) -> Interval:
    """Mean difference values - baseline with the paired t confidence interval.

    Pairs share seed and caption, whose spread cancels: the interval is much narrower
    than that of two separate means.

    Args:
      values: finite numbers, at least two.
      baseline: the numbers of the same seeds and captions, same shape.
      confidence: probability that the interval covers the mean difference, in (0, 1).

    Raises:
      ValueError: for different shapes, and as `mean_interval`.
    """
    left, right = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    if left.shape != right.shape:
        raise ValueError(
            f"paired_interval: expected values and baseline of one shape, found "
            f"{left.shape} and {right.shape}"
        )
    finite = np.isfinite(left) & np.isfinite(right)
    if not finite.all():
        raise ValueError(
            f"paired_interval: expected finite values, found {int((~finite).sum())} of "
            f"{finite.size} pairs not finite"
        )
    return mean_interval(left - right, confidence=confidence)


def _central_probability(theta: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) tan theta), Abramowitz and Stegun 26.7.3 and 26.7.4."""
    cosine, sine = math.cos(theta), math.sin(theta)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= k / (k + 1) * cosine**2
    if odd:
        return (theta + sine * total) * 2 / math.pi
    return sine * total


def _two_sided_t(confidence: float, freedom: int) -> float:
    """The t with P(|T| <= t) = confidence, by bisection of its angle."""
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        if _central_probability(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan((low + high) / 2)


__all__ = ["Interval", "mean_interval", "paired_interval"]
