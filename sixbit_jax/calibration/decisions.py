"""What DMPQ compares with its threshold, computed again from a trace."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sixbit_jax.calibration.recording import Recording
from sixbit_jax.calibration.threshold import predicted_errors
from sixbit_jax.policies import BlockGrid, ErrorPredictor
from sixbit_jax.policies.policy_file import PolicyFile


class Decisions(NamedTuple):
    """Both are in the unit of the threshold; first axes [runs, steps, branches].

    Attributes:
      predicted: what the policy saw; NaN where it had no gamma (INT8).
      measured: the same from the recorded errors; NaN where none were recorded.
    """

    predicted: Float[np.ndarray, "runs steps branches blocks sites"]
    measured: Float[np.ndarray, "runs steps branches blocks sites"]


def decisions(
    recording: Recording,
    predictor: ErrorPredictor,
    grid: BlockGrid,
    *,
    importance: object = None,
    residual: bool = False,
) -> Decisions:
    """Predicted errors times the factors that `dmpq` puts on them.

    Args:
      recording: gammas, skips and errors of the runs.
      predictor: the predictor of the policy.
      grid: the grid of the model.
      importance: factor of each block and site, [L, S], or None.
      residual: times gamma of the step before.
    """
    recording = recording.checked()
    factor = np.ones((1, 1, 1, 1, 1))
    if importance is not None:
        factor = factor * np.asarray(importance, np.float64)
    if residual:
        factor = factor * recording.known_gamma()[..., None]
    predicted = predicted_errors(recording, predictor, grid)
    return Decisions(predicted * factor, recording.error * factor)


def decisions_of(
    recording: Recording, file: PolicyFile, grid: BlockGrid
) -> Decisions | None:
    """The decisions of a policy file, or None if DMPQ is not in it."""
    if file.predictor is None:
        return None
    return decisions(
        recording,
        file.predictor,
        grid,
        importance=file.importance,
        residual=file.residual,
    )
