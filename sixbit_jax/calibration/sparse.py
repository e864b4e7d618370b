"""The threshold of sparse attention that computes a given share of the keys."""

import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from sixbit_jax.policies import attention_density


class SparseFit(NamedTuple):
    """What the search found.

    Attributes:
      tau: of `sparse_attention`.
      density: share of the blocks of keys that the recorded runs computed with it,
        dense steps and blocks included.
      tried: (tau, density) of every evaluation, in order.
    """

    tau: float
    density: float
    tried: tuple[tuple[float, float], ...]


def find_sparse_tau(
    record: Callable[[float], Iterable[Any]],
    share: float,
    *,
    low: float = -4.0,
    high: float = 4.0,
    tolerance: float = 0.005,
    max_evaluations: int = 12,
) -> SparseFit:
    """The tau with which recorded runs compute a share of the blocks of keys.

    The share falls as tau rises, from 1 to what is always computed: dense steps and
    blocks, text, and the keys beside a tile's own. It is that of all blocks that ran,
    for time is proportional to it. A policy of another tau needs no other compiled
    program. Scores of blocks are nearly normal, so that the quantile of the share is
    nearly a line in tau: a line through the two nearest points says what to try next.

    Args:
      record: samples calibration prompts with `sparse_attention(tau, ...)` and returns
        their traces.
      share: to reach, above 0 and at most 1.
      low, high: where tau is looked for, in standard deviations of the scores.
      tolerance: stop when the share is this near.
      max_evaluations: bound on calls of `record`.

    Raises:
      ValueError: a share or bounds out of range, or a share that no tau within the
        bounds comes near to (within 4 tolerances).
    """
    if not (0 < share <= 1 and low < high and tolerance > 0 and max_evaluations >= 3):
        raise ValueError(
            "find_sparse_tau: expected 0 < share <= 1, low < high, tolerance > 0 and "
            f"at least 3 evaluations, found share {share}, low {low}, high {high}, "
            f"tolerance {tolerance}, {max_evaluations} evaluations"
        )
    tried: list[tuple[float, float]] = []
    tau = (low + high) / 2
    while len(tried) < max_evaluations:
        density = _density(record(tau))
        tried.append((tau, density))
        if abs(density - share) <= tolerance:
            break
        low, high = (tau, high) if density > share else (low, tau)
        tau = _next(tried, share, low, high)
    best = min(tried, key=lambda pair: abs(pair[1] - share))
    if abs(best[1] - share) > 4 * tolerance:
        raise ValueError(
            f"find_sparse_tau: no tau computes {share:.3g} of the blocks of keys: the "
            f"nearest of {len(tried)} evaluations is {best[1]:.3g} at tau {best[0]:.4g}"
        )
    return SparseFit(*best, tuple(tried))


def _next(
    tried: list[tuple[float, float]], share: float, low: float, high: float
) -> float:
    """Where to look next, between the bounds."""
    # The two nearest points; an invented one beside the first: the slope is near -1.
    nearest = sorted(tried, key=lambda pair: abs(pair[1] - share))[:2]
    points = [(tau, _quantile(density)) for tau, density in nearest]
    if len(points) == 1:
        points.append((points[0][0] + 1.0, points[0][1] - 1.0))
    (first, at), (second, other) = points
    if at == other:
        return (low + high) / 2
    guess = first + (_quantile(share) - at) * (second - first) / (other - at)
    # The share need not be near a line: in the long run the middle, every other time.
    halve = len(tried) >= 6 and len(tried) % 2 == 0
    if halve or not low < guess < high:
        return (low + high) / 2
    return guess


def _quantile(share: float) -> float:
    """Of the standard normal distribution; 0 and 1 are far out."""
    return statistics.NormalDist().inv_cdf(min(max(share, 1e-6), 1 - 1e-6))


def _density(traces: Iterable[Any]) -> float:
    rows = [(np.asarray(t.attention_density), np.asarray(t.skip)) for t in traces]
    if not rows:
        raise ValueError("find_sparse_tau: expected traces of runs, found none")
    density, skip = (np.stack(part) for part in zip(*rows, strict=True))
    return attention_density(density, skip)


__all__ = ["SparseFit", "find_sparse_tau"]
