"""delta-GBS's threshold for a target of average activation bits."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from numpy.typing import ArrayLike

from sixbit_jax.measured import known


class DeltaFit(NamedTuple):
    """What `find_delta` found.

    Attributes:
      delta: threshold for `policies.delta_gbs`.
      bits: mean activation bits of the recorded runs under it, replayed.
    """

    delta: float
    bits: float


def replay_switching(
    output_change: ArrayLike, delta: float
) -> Bool[np.ndarray, "*runs steps"]:
    """Which steps `delta_gbs(delta)` would run in its low route.

    Args:
      output_change: [..., steps], relative L1 change of the guided output, as traces
        hold it.
      delta: the threshold.
    """
    change = known(output_change)
    change = np.where(np.isfinite(change), change, np.inf)
    low = np.zeros(change.shape, bool)
    total = np.full(change.shape[:-1], np.inf)
    for step in range(change.shape[-1]):
        low[..., step] = total < delta
        total = np.where(low[..., step], total, 0.0) + change[..., step]
    return low


def find_delta(
    output_change: ArrayLike,
    target_bits: float,
    *,
    low_bits: float = 4.0,
    high_bits: float = 8.0,
    candidates: int = 400,
) -> DeltaFit:
    """The threshold whose replayed runs come nearest to a mean of `target_bits`.

    Open loop: the changes were recorded under other bits. Quantization changes them
    little; where it matters, sample with the found number and correct.

    Args:
      output_change: [..., steps] of calibration runs that skip nothing.
      target_bits: mean over steps and runs.
      low_bits, high_bits: bits of the two routes.
      candidates: thresholds tried, by ratio.

    Raises:
      ValueError: no finite change, or a target outside low_bits..high_bits or below
        what the first two steps (always high) allow, by more than 0.25 bits.
    """
    change = np.asarray(output_change, np.float64)
    measured = known(change)
    usable = measured[measured > 0]
    if not usable.size or not low_bits <= target_bits <= high_bits:
        raise ValueError(
            f"find_delta: expected recorded output changes and {low_bits} to "
            f"{high_bits} bits, found {usable.size} positive changes and {target_bits}"
        )
    deltas = np.geomspace(
        usable.min() / 2, usable.max() * change.shape[-1] * 2, candidates
    )
    share = np.array([replay_switching(change, delta).mean() for delta in deltas])
    bits = high_bits - (high_bits - low_bits) * share
    best = int(np.abs(bits - target_bits).argmin())
    if abs(bits[best] - target_bits) > 0.25:
        raise ValueError(
            f"find_delta: {target_bits} bits cannot be reached, the nearest of runs of "
            f"{change.shape[-1]} steps is {bits[best]:.2f}"
        )
    return DeltaFit(float(deltas[best]), float(bits[best]))
