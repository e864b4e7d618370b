"""What the compared methods need to be tuned to: errors, fits, equal bits and skips.

All of it uses calibration captions, none of which is evaluated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.quality.metrics import costs
from benchmarks.quality.policies import Setting
from benchmarks.quality.runs import RECORD, Kind, Study, Task
from sixbit_jax import calibration
from sixbit_jax.measured import known
from sixbit_jax.policies import BlockGrid
from sixbit_jax.routes import Route


@dataclass(frozen=True)
class Targets:
    """What compared methods are brought to.

    Attributes:
      bits: activation bits.
      skips: skip fraction.
      points: numbers tried per round of a search.
    """

    bits: float = 6.0
    skips: float = 0.3
    points: int = 8


@dataclass(frozen=True)
class Recording:
    """What INT8 runs measured, first axes [samples, steps, branches].

    Attributes:
      error: E_rel, [..., L, S].
      outlier: max|x| / mean|x|, [..., L, S].
      gamma: [..., L].
      delta_change: [..., L], `NO_CHANGE` in the first step.
      output_change: [samples, steps], `NO_CHANGE` in the first step.
    """

    error: np.ndarray
    outlier: np.ndarray
    gamma: np.ndarray
    delta_change: np.ndarray
    output_change: np.ndarray

    def for_fit(self) -> calibration.Recording:
        """What `sixbit_jax.calibration` reads: no block was skipped."""
        skip = np.zeros(self.gamma.shape, bool)
        return calibration.Recording(self.gamma, self.error, skip).checked()

    def arrays(self) -> dict[str, np.ndarray]:
        """For a file."""
        return {f"record_{name}": value for name, value in vars(self).items()}


def record(study: Study, task: Task) -> Recording:
    """Runs the calibration captions with INT8 activations and measures."""
    trace = study.run(RECORD, [Setting(route=Route.INT8)], task).trace
    names = ("error", "outlier", "gamma", "delta_change", "output_change")
    return Recording(*(np.asarray(getattr(trace, n), np.float32) for n in names))


def fit(recording: Recording, sites: Sequence[str]) -> calibration.PredictorFit:
    """DMPQ's error model."""
    return calibration.fit_predictor(recording.for_fit(), tuple(sites))


def _pairs(recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    """gamma[t-1] [N, steps-1, branches, L] and E_rel[t] [..., L, S], float64."""
    gamma = recording.gamma[:, :-1].astype(np.float64)
    return gamma, recording.error[:, 1:].astype(np.float64)


def pearson(x: np.ndarray, y: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Correlation over `axes`; NaN where one of the two does not vary."""
    x = x - x.mean(axes, keepdims=True)
    y = y - y.mean(axes, keepdims=True)
    scale = np.sqrt(np.square(x).sum(axes) * np.square(y).sum(axes))
    product = (x * y).sum(axes)
    return np.where(scale > 1e-20, product / np.maximum(scale, 1e-20), np.nan)


def correlations(recording: Recording, sites: Sequence[str]) -> list[dict[str, Any]]:
    """How well signals of step t-1 tell E_rel of step t, per site.

    `r_pooled`: over samples, steps, branches and blocks. `r_within_block`: inside one
    block, mean over blocks; `r2_within_block`: its square, the share of the variance
    that a line per block explains. `r_within_step`: inside one block and step, so that
    neither the block nor the step tells: what is left is what differs between videos.
    `r2_fit` is the share of all variance of a site that DMPQ's predictor explains,
    `r2_without_gamma` the share that one constant per block explains.
    """
    error = recording.error[:, 1:].astype(np.float64)
    signals = {
        "gamma": np.broadcast_to(_pairs(recording)[0][..., None], error.shape),
        "outlier": recording.outlier[:, :-1].astype(np.float64),
        "previous_error": recording.error[:, :-1].astype(np.float64),
    }
    fitted = fit(recording, sites).summary()
    records = []
    for name, signal in signals.items():
        pooled = pearson(signal, error, (0, 1, 2, 3))
        block = pearson(signal, error, (0, 1, 2))
        step = pearson(signal, error, (0, 2))
        for number, site in enumerate(sites):
            records.append(
                {
                    "kind": "correlation",
                    "signal": name,
                    "site": site,
                    "r_pooled": _number(pooled[number]),
                    "r_within_block": _mean(block[:, number]),
                    "r_within_block_lowest": _lowest(block[:, number]),
                    "r2_within_block": _mean(np.square(block[:, number])),
                    "r_within_step": _mean(step[..., number]),
                    "r2_fit": fitted[site]["r_squared"] if name == "gamma" else None,
                    "r2_without_gamma": fitted[site]["r_squared_without_gamma"],
                    "error_mean": float(error[..., number].mean()),
                    "error_std": float(error[..., number].std()),
                }
            )
    return records


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def _lowest(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.min()) if finite.size else None


def assign(error: np.ndarray, grid: BlockGrid, bits: float) -> np.ndarray:
    """INT8 where the error is largest, NVFP4 elsewhere, at a mean of `bits`.

    Args:
      error: [L, S] or [steps, L, S].
      grid: weighs sites by multiply-accumulates.
      bits: 4..8.

    Returns:
      Routes of the shape of `error`.
    """
    macs = np.broadcast_to(grid.macs, error.shape).reshape(-1)
    order = np.argsort(-error.reshape(-1), kind="stable")
    weights = macs[order] / macs.sum()
    # A site is taken if its middle lies inside the share: no bias either way.
    taken = np.cumsum(weights) - weights / 2 < (bits - 4) / 4
    routes = np.full(error.size, int(Route.NVFP4))
    routes[order[taken]] = int(Route.INT8)
    return routes.reshape(error.shape)


def measure_damage(study: Study, kind: Kind, task: Task) -> np.ndarray:
    """What NVFP4 at one site alone does to the video: squared latent error, [L, S].

    Every other site runs in INT8; the error is against all sites in INT8.
    """
    blocks, sites = study.grid.num_blocks, len(study.grid.sites)
    settings = [Setting(route=Route.INT8)]
    for place in range(blocks * sites):
        route = np.full(blocks * sites, int(Route.INT8))
        route[place] = int(Route.NVFP4)
        settings.append(Setting(route=route.reshape(blocks, sites)))
    pairs = [(s, i) for s in settings for i in range(len(task))]
    samples = study.run(kind, [s for s, _ in pairs], task.take([i for _, i in pairs]))
    latents = np.asarray(samples.latents, np.float64)
    latents = latents.reshape(len(settings), len(task), -1)
    error = np.square(latents[1:] - latents[:1]).sum(-1)
    relative = error / np.square(latents[0]).sum(-1)
    return relative.mean(1).reshape(blocks, sites)


@dataclass(frozen=True)
class Solution:
    """A number that meets a target, and what it measured on calibration captions."""

    value: float
    measured: float


def solve(
    study: Study,
    kind: Kind,
    task: Task,
    setting_of: Callable[[float], Setting],
    quantity: str,
    target: float,
    span: tuple[float, float],
    *,
    points: int = 8,
    rounds: int = 2,
    geometric: bool = True,
) -> Solution:
    """The number at which a cost meets its target, in the closed loop.

    A search over grids instead of bisection: all points of a grid and all captions
    run in one call.

    Args:
      study, kind, task: what runs.
      setting_of: the setting of a number.
      quantity: one of `quality_metrics.COST`; monotone in the number.
      target: its mean over the captions.
      span: where to look first.
      points, rounds: grid points per round; each round looks between two of the last.
      geometric: grid by ratio instead of by difference.

    Returns:
      The interpolated number, or the nearer end of the span if it does not reach.
    """
    low, high = span
    space = np.geomspace if geometric else np.linspace
    measured, left = np.full(points, np.nan), 0
    values = np.array([low, high])
    for _ in range(rounds):
        values = space(low, high, points)
        settings = [setting_of(float(value)) for value in values]
        pairs = [(s, i) for s in settings for i in range(len(task))]
        repeated = task.take([i for _, i in pairs])
        samples = study.run(kind, [s for s, _ in pairs], repeated)
        measured = costs(samples, study.grid)[quantity].reshape(points, -1).mean(1)
        above = measured >= target
        crossings = np.flatnonzero(above[1:] != above[:-1])
        if not len(crossings):
            nearest = int(np.abs(measured - target).argmin())
            return Solution(float(values[nearest]), float(measured[nearest]))
        left = int(crossings[0])
        low, high = float(values[left]), float(values[left + 1])
    pair = measured[left : left + 2]
    part = (target - pair[0]) / (pair[1] - pair[0])
    return Solution(low + part * (high - low), target)


def span_of(values: np.ndarray, *, low: float = 1.0, high: float = 1.0) -> tuple:
    """Smallest and largest positive finite value, widened by factors."""
    measured = known(values)
    usable = measured[measured > 0]
    if not usable.size:
        return 1e-6, 1.0
    return float(usable.min()) * low, max(float(usable.max()) * high, 1e-6)


def solve_both(
    study: Study,
    kind: Kind,
    task: Task,
    setting: Setting,
    targets: Targets,
    spans: tuple[tuple[float, float], tuple[float, float]],
) -> tuple[Setting, dict[str, float]]:
    """DMPQ's threshold and the cache's tau for given bits and skips.

    The two hardly touch each other: one after the other, then again close by.

    Args:
      study, kind, task: what runs.
      setting: the other numbers.
      targets: activation bits, skip fraction, points per round.
      spans: where the threshold and tau are looked for.

    Returns:
      The setting, and the measured numbers.
    """
    threshold_span, tau_span = spans
    threshold = float(np.sqrt(threshold_span[0] * threshold_span[1]))
    setting = replace(setting, threshold=threshold)
    found = {}
    for turn in range(2):
        tau = solve(
            study,
            kind,
            task,
            lambda x, base=setting: replace(base, tau=x),
            "skip_fraction",
            targets.skips,
            tau_span,
            points=targets.points,
            rounds=2 - turn,
        )
        setting = replace(setting, tau=tau.value)
        threshold = solve(
            study,
            kind,
            task,
            lambda x, base=setting: replace(base, threshold=x),
            "activation_bits",
            targets.bits,
            threshold_span,
            points=targets.points,
            rounds=2 - turn,
        )
        setting = replace(setting, threshold=threshold.value)
        tau_span = tau.value / 1.3, tau.value * 1.3
        threshold_span = threshold.value / 1.15, threshold.value * 1.15
        found = {
            "calibrated_bits": threshold.measured,
            "calibrated_skip_fraction": tau.measured,
        }
    return setting, found
