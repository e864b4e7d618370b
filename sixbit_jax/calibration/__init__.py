"""Fits what a policy needs from recorded runs, and stores it."""

from sixbit_jax.calibration.bit_switching import (
    DeltaFit,
    find_delta,
    replay_switching,
)
from sixbit_jax.calibration.calibrate import (
    Calibrated,
    CalibrationOptions,
    calibrate,
)
from sixbit_jax.calibration.calibrate_switching import calibrate_switching
from sixbit_jax.calibration.fit import PredictorFit, fit_predictor
from sixbit_jax.calibration.plots import plot_fit
from sixbit_jax.calibration.recording import Recording
from sixbit_jax.calibration.runs import CalibrationRuns, Sampled
from sixbit_jax.calibration.search import SearchResult, find_largest, find_target
from sixbit_jax.calibration.sparse import SparseFit, find_sparse_tau
from sixbit_jax.calibration.threshold import (
    best_static_routes,
    predicted_errors,
)
from sixbit_jax.policies.policy_file import (
    PolicyFile,
    config_hash,
    load_policy,
    policy_from_file,
    save_policy,
)

__all__ = [
    "Calibrated",
    "CalibrationOptions",
    "CalibrationRuns",
    "DeltaFit",
    "PolicyFile",
    "PredictorFit",
    "Recording",
    "Sampled",
    "SearchResult",
    "SparseFit",
    "best_static_routes",
    "calibrate",
    "calibrate_switching",
    "config_hash",
    "find_delta",
    "find_largest",
    "find_sparse_tau",
    "find_target",
    "fit_predictor",
    "load_policy",
    "plot_fit",
    "policy_from_file",
    "predicted_errors",
    "replay_switching",
    "save_policy",
]
