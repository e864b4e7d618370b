"""What DMPQ predicts on recorded runs, and the static baseline at equal bits."""

import numpy as np
from jaxtyping import Float, Int

from sixbit_jax.calibration.recording import Recording
from sixbit_jax.policies import BlockGrid, ErrorPredictor
from sixbit_jax.routes import Route


def predicted_errors(
    recording: Recording, predictor: ErrorPredictor, grid: BlockGrid
) -> Float[np.ndarray, "runs steps branches blocks sites"]:
    """What DMPQ would predict at every step; NaN where it has no gamma."""
    alpha, beta = predictor.for_grid(grid)
    known = recording.known_gamma()[..., None]
    known = np.where(np.isfinite(known), known, np.nan)
    return alpha * known + beta


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
