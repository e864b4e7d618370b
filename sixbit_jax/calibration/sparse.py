"""The threshold of sparse attention that computes a given share of the keys."""

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
    program.

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

    def off(tau: float) -> float:
        density = _density(record(tau))
        tried.append((tau, density))
        return density - share

    middle = (low + high) / 2
    while len(tried) < max_evaluations:
        difference = off(middle)
        if abs(difference) <= tolerance:
            break
        low, high = (middle, high) if difference > 0 else (low, middle)
        middle = (low + high) / 2
    best = min(tried, key=lambda pair: abs(pair[1] - share))
    if abs(best[1] - share) > 4 * tolerance:
        raise ValueError(
            f"find_sparse_tau: no tau computes {share:.3g} of the blocks of keys: the "
            f"nearest of {len(tried)} evaluations is {best[1]:.3g} at tau {best[0]:.4g}"
        )
    return SparseFit(*best, tuple(tried))


def _density(traces: Iterable[Any]) -> float:
    rows = [(np.asarray(t.attention_density), np.asarray(t.skip)) for t in traces]
    if not rows:
        raise ValueError("find_sparse_tau: expected traces of runs, found none")
    density, skip = (np.stack(part) for part in zip(*rows, strict=True))
    return attention_density(density, skip)


__all__ = ["SparseFit", "find_sparse_tau"]
