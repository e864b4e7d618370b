"""Fits what a policy needs from recorded runs, and stores it."""

from sixbit_jax.calibration.bit_switching import (
    DeltaFit,
    find_delta,
    replay_switching,
)
from sixbit_jax.calibration.fit import PredictorFit, fit_predictor
from sixbit_jax.calibration.plots import plot_fit
from sixbit_jax.calibration.recording import Recording
from sixbit_jax.calibration.search import SearchResult, find_largest, find_target
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
    "DeltaFit",
    "PolicyFile",
    "PredictorFit",
    "Recording",
    "SearchResult",
    "best_static_routes",
    "config_hash",
    "find_delta",
    "find_largest",
    "find_target",
    "fit_predictor",
    "load_policy",
    "plot_fit",
    "policy_from_file",
    "predicted_errors",
    "replay_switching",
    "save_policy",
]
