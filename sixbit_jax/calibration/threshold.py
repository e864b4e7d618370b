"""The one global threshold of DMPQ, from recorded runs and a target of bits."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sixbit_jax.calibration.recording import Recording
from sixbit_jax.policies import BlockGrid, ErrorPredictor, activation_bits
from sixbit_jax.routes import Route


class ThresholdFit(NamedTuple):
    """Attributes: the threshold, and the activation bits of the recorded runs."""

    threshold: float
    bits: float


def predicted_errors(
    recording: Recording, predictor: ErrorPredictor, grid: BlockGrid
) -> Float[np.ndarray, "runs steps branches blocks sites"]:
    """What DMPQ would predict at every step; NaN where it has no gamma."""
    alpha, beta = predictor.for_grid(grid)
    known = recording.known_gamma()[..., None]
    known = np.where(np.isfinite(known), known, np.nan)
    return alpha * known + beta


def replay_routes(
    recording: Recording,
    predictor: ErrorPredictor,
    threshold: float,
    grid: BlockGrid,
    *,
    refresh_int8: bool = True,
) -> Int[np.ndarray, "runs steps branches blocks sites"]:
    """The routes that DMPQ (and rule B of PDR) would have chosen on recorded runs.

    INT8 in the first step, without a valid gamma, and, if `refresh_int8`, in blocks
    that return from skipping.
    """
    recording = recording.checked()
    predicted = predicted_errors(recording, predictor, grid)
    low = predicted <= threshold  # false for NaN
    if refresh_int8:
        low &= ~_refreshed(recording)[..., None]
    return np.where(low, Route.NVFP4, Route.INT8).astype(np.int32)


def find_threshold(
    recording: Recording,
    predictor: ErrorPredictor,
    grid: BlockGrid,
    *,
    target_bits: float = 6.0,
    refresh_int8: bool = True,
) -> ThresholdFit:
    """The threshold whose MAC-weighted mean activation width is nearest the target.

    The width falls step by step as the threshold passes the predicted errors, so the
    search bisects their sorted list and is exact. Record with skips to calibrate for
    a policy that skips: skipped blocks do not count.

    Args:
      recording: the runs.
      predictor: fitted on them, or on others of the same model.
      grid: sites and multiply-accumulates of the model.
      target_bits: between 4 and 8.
      refresh_int8: whether rule B of PDR will be on.

    Returns:
      The threshold and the bits it gives on the recording.

    Raises:
      ValueError: no threshold comes within a quarter bit of the target (the first
        step is always INT8, and thresholds are not negative).
    """
    if not 4.0 <= target_bits <= 8.0:
        raise ValueError(f"target_bits must be within [4, 8], found {target_bits}")
    recording = recording.checked()
    predicted = predicted_errors(recording, predictor, grid)
    values = np.unique(predicted[np.isfinite(predicted)])
    # Between two predictions lie all thresholds that separate them.
    inner = (values[1:] + values[:-1]) / 2
    candidates = np.concatenate([[0.0], inner[inner > 0], np.abs(values[-1:]) * 2])

    def bits(threshold: float) -> float:
        route = replay_routes(
            recording, predictor, threshold, grid, refresh_int8=refresh_int8
        )
        return activation_bits(route, recording.skip, grid)

    low, high = 0, len(candidates) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if bits(candidates[middle]) > target_bits:
            low = middle
        else:
            high = middle
    fits = [
        ThresholdFit(float(candidates[i]), bits(candidates[i])) for i in (low, high)
    ]
    best = min(fits, key=lambda fit: abs(fit.bits - target_bits))
    if abs(best.bits - target_bits) > 0.25:
        raise ValueError(
            f"no threshold gives {target_bits} activation bits on the recorded runs: "
            f"they range from {bits(candidates[-1]):.2f} to {bits(0.0):.2f}"
        )
    return best


def best_static_routes(
    recording: Recording,
    grid: BlockGrid,
    *,
    target_bits: float = 6.0,
    per_mac: bool = False,
) -> Int[np.ndarray, "blocks sites"]:
    """The static baseline: INT8 where the mean recorded error is largest.

    Sites are raised to INT8 in the order of their mean E_rel over runs, steps and
    branches (divided by their multiply-accumulates if `per_mac`), as many as bring
    the activation width nearest to the target.
    """
    recording = recording.checked()
    error = np.where(recording.skip[..., None], np.nan, recording.error)
    valid = np.isfinite(error)
    count = valid.sum((0, 1, 2))
    if (count == 0).any():
        raise ValueError("best_static_routes: a site has no recorded error")
    mean = np.where(valid, error, 0.0).sum((0, 1, 2)) / count
    macs = np.asarray(grid.macs, np.float64)
    order = np.argsort(-(mean / macs if per_mac else mean), axis=None, kind="stable")
    share = np.concatenate([[0.0], np.cumsum(macs.reshape(-1)[order])]) / macs.sum()
    raised = int(np.abs(4.0 + 4.0 * share - target_bits).argmin())
    route = np.full(macs.size, Route.NVFP4, np.int32)
    route[order[:raised]] = Route.INT8
    return route.reshape(macs.shape)


def _refreshed(recording: Recording) -> np.ndarray:
    """Blocks that return from skipping."""
    refreshed = np.zeros(recording.skip.shape, bool)
    refreshed[:, 1:] = recording.skip[:, :-1] & ~recording.skip[:, 1:]
    return refreshed
