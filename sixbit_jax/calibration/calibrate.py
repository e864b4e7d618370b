"""DMPQ's predictor and threshold and TDC's tau, found by sampling with them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sixbit_jax.calibration.decisions import decisions
from sixbit_jax.calibration.fit import PredictorFit, fit_predictor
from sixbit_jax.calibration.options import CalibrationOptions
from sixbit_jax.calibration.recording import Recording
from sixbit_jax.calibration.runs import CalibrationRuns, Sampled
from sixbit_jax.calibration.search import find_largest, find_target
from sixbit_jax.calibration.sparse import find_sparse_tau
from sixbit_jax.metrics.latents import latent_drift
from sixbit_jax.policies import (
    BlockGrid,
    activation_bits,
    attention_density,
    chain,
    skip_fraction,
)
from sixbit_jax.policies.policy_file import PolicyFile
from sixbit_jax.routes import Route
from sixbit_jax.sampling.api import block_grid
from sixbit_jax.sampling.trace import Trace

_ROUNDS = 3
_BITS_TOLERANCE = 0.05
_SKIP_TOLERANCE = 0.015

Say = Callable[[str], None]


class Calibrated(NamedTuple):
    """What `calibrate` found.

    Attributes:
      policy: for `save_policy`.
      fit: of the predictor.
      recording: that it was fitted to.
    """

    policy: PolicyFile
    fit: PredictorFit
    recording: Recording


def calibrate(
    runs: CalibrationRuns,
    options: CalibrationOptions | None = None,
    *,
    say: Say = lambda message: None,
) -> Calibrated:
    """Records runs, fits the error predictor, and finds threshold and tau.

    Args:
      runs: what is sampled; the model has stored weights.
      options: targets, and the parts of the policy.
      say: told what is going on.

    Raises:
      ValueError: for inputs that do not fit, fewer than two steps, or targets that
        cannot be reached.

    >>> import sixbit_jax
    >>> from sixbit_jax.calibration import CalibrationOptions, CalibrationRuns
    >>> from sixbit_jax.calibration import calibrate
    >>> from sixbit_jax.demo.model import COGVIDEOX
    >>> from sixbit_jax.demo.text import encode_captions
    >>> runs = CalibrationRuns(
    ...     sixbit_jax.quantize(COGVIDEOX.new(0, {"num_layers": 2})),
    ...     sixbit_jax.CogVideoXDDIM(), encode_captions(["a red circle"]), None,
    ...     latent_shape=(2, 3, 32, 32), num_steps=4, guidance=sixbit_jax.Guidance(1.0),
    ... )
    >>> found = calibrate(runs, CalibrationOptions(bits=6.0, skips=0.0))
    >>> found.policy.threshold is not None, found.policy.tau
    (True, None)
    """
    options = CalibrationOptions() if options is None else options
    if runs.num_steps < 2:
        raise ValueError(
            f"calibration: expected at least 2 steps, found {runs.num_steps}"
        )
    say(f"recording {runs.count} runs of {runs.num_steps} steps")
    recorded = runs.sample(chain(), record_errors=True)
    recording = Recording.from_traces(recorded.traces, runs.starts)
    present = np.asarray(block_grid(runs.model).macs) > 0
    fit = fit_predictor(recording, runs.model.sites, present=present)
    return Calibrated(_search(runs, options, recorded, fit, say), fit, recording)


def _search(
    runs: CalibrationRuns,
    options: CalibrationOptions,
    recorded: Sampled,
    fit: PredictorFit,
    say: Say,
) -> PolicyFile:
    """Threshold and tau; each is found with the other one in place.

    Skips change which steps count, and refreshes are wider than DMPQ alone would have
    them: the threshold is found again on runs that skip, and tau again if that moved
    the skips.
    """
    numbers = _first_numbers(options, recorded, fit)
    search = _Search(runs, options, recorded, say, numbers)
    if options.attention_share is not None:
        search.find_share(options.attention_share)
    numbers["threshold"] = search.threshold_on(
        recorded._replace(traces=tuple(map(_no_bf16, recorded.traces)))
    )
    final = search.at_target()
    for _ in range(_ROUNDS):
        bits = search.cost(final)["activation_bits"]
        if abs(bits - options.bits) <= _BITS_TOLERANCE:
            break
        threshold = search.threshold_on(final)
        if threshold == numbers["threshold"]:
            break
        say(f"{bits:.2f} activation bits: threshold {threshold:.5g}")
        numbers["threshold"] = threshold
        final = search.now()
        off = abs(search.cost(final)["skip_fraction"] - options.skips)
        if options.skipping and off > 2 * _SKIP_TOLERANCE and options.max_drift is None:
            final = search.at_target()
    cost = search.cost(final)
    if abs(cost["activation_bits"] - options.bits) > 5 * _BITS_TOLERANCE:
        say(
            f"warning: {options.bits} activation bits were not reached, the nearest "
            f"are {cost['activation_bits']:.2f}: blocks that return from skipping run "
            "in INT8 or BF16 (fewer skips, a larger outlier ratio, or no INT8 after a "
            "skip)"
        )
    notes = {
        "target_bits": options.bits,
        "target_skips": options.skips if options.max_drift is None else None,
        "max_drift": options.max_drift,
        "target_attention_share": options.attention_share,
        **cost,
        "drift": drift_of(final, recorded),
        **runs.notes(),
        "sites": fit.summary(),
    }
    return PolicyFile.for_model(runs.model, calibration=notes, **numbers)


def _first_numbers(
    options: CalibrationOptions, recorded: Sampled, fit: PredictorFit
) -> dict[str, Any]:
    """The numbers of the policy file that are not searched for."""
    numbers: dict[str, Any] = {
        "predictor": fit.predictor,
        "residual": options.residual,
        "final_int8": options.final_int8,
        "max_skips": options.max_skips,
        "warmup": options.warmup,
        "together": options.together,
        "shared": options.shared,
        "purify": options.skipping and options.purify,
        "outlier_ratio": options.outlier_ratio,
        "refresh_int8": options.refresh_int8,
        "tau": None,
    }
    if options.int8_attention is not None:
        gamma = _stack(recorded.traces, "gamma")
        limit = float(np.quantile(gamma, options.int8_attention))
        numbers["attention_max_gamma"] = limit
    return numbers


@dataclass(frozen=True, eq=False)
class _Search:
    """The runs of a search, and the numbers as they are so far."""

    runs: CalibrationRuns
    options: CalibrationOptions
    recorded: Sampled
    say: Say
    numbers: dict[str, Any]
    grid: BlockGrid = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", block_grid(self.runs.model))

    def now(self, **changes: Any) -> Sampled:
        """Runs under the numbers as they are."""
        numbers = self.numbers | changes
        policy = PolicyFile.for_model(self.runs.model, **numbers).policy()
        return self.runs.sample(policy, self.options.search_prompts)

    def at_target(self) -> Sampled:
        """Runs at the target of skips; puts tau into the numbers."""
        return self._find_tau() if self.options.skipping else self.now()

    def cost(self, sampled: Sampled) -> dict[str, float]:
        """Activation bits, skips and the share of the keys of runs."""
        route = _stack(sampled.traces, "route")
        skip = _stack(sampled.traces, "skip")
        density = _stack(sampled.traces, "attention_density")
        return {
            "activation_bits": activation_bits(route, skip, self.grid),
            "skip_fraction": skip_fraction(skip),
            "density": attention_density(density, skip),
        }

    def find_share(self, share: float) -> None:
        """Puts the threshold of sparse attention into the numbers.

        Nothing is skipped and activations are as they were recorded: what a block's
        queries and keys look like hardly depends on either.
        """
        self.numbers["sparse_way"] = "threshold"

        others = {"predictor": None, "threshold": None, "purify": False}

        def record(tau: float) -> tuple[Trace, ...]:
            return self.now(sparse_tau=tau, **others).traces

        fit = find_sparse_tau(record, share)
        for tau, density in fit.tried:
            self.say(f"attention tau {tau:.5g}: {100 * density:.1f} % of the keys")
        self.numbers["sparse_tau"] = fit.tau

    def threshold_on(self, sampled: Sampled) -> float:
        """The threshold for the bits, on runs as they were."""
        return closed_threshold(
            sampled,
            self.numbers,
            self.grid,
            self.options.bits,
            starts=self.runs.starts,
        )

    def _find_tau(self) -> Sampled:
        tried: dict[float, Sampled] = {}
        limit = self.options.max_drift

        def attempt(tau: float) -> tuple[float, float]:
            tried[tau] = self.now(tau=tau)
            skipped = skip_fraction(_stack(tried[tau].traces, "skip"))
            drift = drift_of(tried[tau], self.recorded)
            self.say(f"tau {tau:.5g}: {100 * skipped:.1f} % skipped, drift {drift:.4f}")
            return skipped, drift

        def skipped_at(tau: float) -> float:
            # tau 0 skips nothing, by definition: no need to sample.
            return attempt(tau)[0] if tau > 0 else 0.0

        def nearness_at(tau: float) -> float:
            drift = attempt(tau)[1]
            if limit is not None and tau == 0 and drift > limit:
                raise ValueError(
                    f"max_drift: expected more than {drift:.4f}, the drift without any "
                    f"skip, found {limit}"
                )
            return -drift

        if limit is not None:
            found = find_largest(nearness_at, -limit, tolerance=0.03)
        else:
            target = self.options.skips
            found = find_target(skipped_at, target, tolerance=_SKIP_TOLERANCE)
        self.numbers["tau"] = found.value
        return tried[found.value]


def closed_threshold(
    sampled: Sampled,
    numbers: dict[str, Any],
    grid: BlockGrid,
    target_bits: float,
    *,
    starts: tuple[int, ...] = (),
) -> float:
    """The threshold for the target on runs with skips and refreshes as they were.

    It knows every option of the policy, and counts the sites
    that the outlier rule put into BF16.

    Args:
      sampled: the runs.
      numbers: of the policy file, as they are so far.
      grid: of the model.
      target_bits: mean activation width.
      starts: see `Recording`.
    """
    seen = Recording.from_traces(sampled.traces, starts)
    values = decisions(
        seen, numbers["predictor"], grid, residual=numbers["residual"]
    ).predicted
    purified = _stack(sampled.traces, "route") == Route.BF16
    wide = np.zeros(values.shape, bool)
    if numbers["purify"] and numbers["refresh_int8"]:
        wide |= _stack(sampled.traces, "refresh")[..., None]
    steps = values.shape[1]
    wide[:, steps - numbers["final_int8"] :] = True
    levels = np.quantile(values[np.isfinite(values)], np.linspace(0, 1, 301))
    candidates = np.unique(np.maximum(np.append(levels, 1.01 * levels[-1]), 0.0))

    def distance(threshold: float) -> float:
        low = (values <= threshold) & ~wide  # false for NaN
        route = np.where(low, Route.NVFP4, Route.INT8)
        route = np.where(purified, Route.BF16, route)
        return abs(activation_bits(route, seen.skip, grid) - target_bits)

    return float(min(candidates, key=distance))


def drift_of(sampled: Sampled, reference: Sampled) -> float:
    """Mean relative L2 distance of the latents from those of other runs."""
    count = len(sampled.latents)
    return float(latent_drift(sampled.latents, reference.latents[:count]).mean())


def _no_bf16(trace: Trace) -> Trace:
    """A full-precision trace as one whose routes are still open."""
    route: Any = np.full_like(trace.route, Route.INT8)
    return trace._replace(route=route)


def _stack(traces: Sequence[Trace], name: str) -> np.ndarray:
    return np.stack([getattr(trace, name) for trace in traces])


__all__ = [
    "Calibrated",
    "CalibrationOptions",
    "calibrate",
    "closed_threshold",
    "drift_of",
]
