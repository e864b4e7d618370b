"""The calibration that the rows of the quality table need."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.quality.calibrate import (
    Recording,
    Targets,
    fit,
    measure_damage,
    solve,
    solve_both,
    span_of,
)
from benchmarks.quality.policies import Setting
from benchmarks.quality.runs import (
    FULL,
    QUANTIZED,
    Kind,
    Study,
    Task,
)
from sixbit_jax.policies import ErrorPredictor


class Calibrated:
    """Makes methods; calibrates on first need, so that a run of few rows is quick.

    Args:
      study: programs.
      recording: the recording of the calibration captions.
      task: calibration captions for closed-loop searches.
      targets: bits and skips.
    """

    def __init__(
        self, study: Study, recording: Recording, task: Task, targets: Targets
    ):
        self.study, self.recording, self.task = study, recording, task
        self.targets = targets
        self.fit = fit(recording, study.grid.sites)
        self.predictor: ErrorPredictor = self.fit.predictor
        self._made: dict[str, Any] = {}

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    @property
    def tau_span(self) -> tuple[float, float]:
        """Delta changes; E_acc + e reaches twice e at the second skip."""
        return span_of(self.recording.delta_change, low=0.9, high=3.0)

    @property
    def step_span(self) -> tuple[float, float]:
        """Output changes, up to five of which accumulate."""
        return span_of(self.recording.output_change, low=0.5, high=5.0)

    @property
    def work(self) -> np.ndarray:
        """Share of every site in its block's work, mean 1, [L, S]."""
        macs = self.study.grid.macs
        return macs / macs.mean()

    @property
    def damage(self) -> np.ndarray:
        """What NVFP4 at each site alone does to the calibration videos, [L, S]."""
        return self._once(
            "damage",
            lambda: measure_damage(
                self.study, QUANTIZED, self.task.take(range(min(4, len(self.task))))
            ),
        )

    def price(self) -> np.ndarray:
        """Damage per unit of E_rel and of work: DMPQ's importance, [L, S]."""
        error = self.recording.error.mean((0, 1, 2))
        return self.damage / error / self.work

    def base(self, variant: str) -> Setting:
        """DMPQ without its threshold: the paper's rule or a variant of it."""
        base = Setting(predictor=self.predictor)
        if "per_mac" in variant:
            base = replace(base, importance=1 / self.work)
        if "damage" in variant:
            base = replace(base, importance=self.price())
        return replace(
            base,
            residual="residual" in variant,
            final_int8=3 if "final" in variant else 0,
        )

    def threshold_span_of(self, base: Setting) -> tuple[float, float]:
        """Where the threshold of a variant lies."""
        gamma = self.recording.gamma[..., None]
        error = np.maximum(self.predictor.alpha * gamma + self.predictor.beta, 1e-6)
        error = error * (gamma if base.residual else 1.0)
        weight = 1.0 if base.importance is None else base.importance
        low, high = np.quantile(error * weight, (0.02, 0.98))
        return float(low), float(high)

    def dmpq(self, variant: str = "", kind: Kind = QUANTIZED) -> Setting:
        """DMPQ at the target bits, in the program of `kind`."""

        def make() -> Setting:
            base = self.base(variant)
            found = solve(
                self.study,
                kind,
                self.task,
                lambda x: replace(base, threshold=x),
                "activation_bits",
                self.targets.bits,
                self.threshold_span_of(base),
                points=self.targets.points,
            )
            return replace(base, threshold=found.value)

        return self._once(f"dmpq {variant} {kind}", make)

    def skipping(
        self,
        name: str,
        with_number: Callable[[Setting, float], Setting],
        span: tuple[float, float],
        *,
        kind: Kind = FULL,
        **numbers: Any,
    ) -> Setting:
        """Full precision with a cache's number at the target skip fraction."""
        base = Setting(**numbers)

        def make() -> Setting:
            found = solve(
                self.study,
                kind,
                self.task,
                lambda x: with_number(base, x),
                "skip_fraction",
                self.targets.skips,
                span,
                points=self.targets.points,
            )
            return with_number(base, found.value)

        return self._once(name, make)

    def both(self, variant: str, *, kind: Kind = QUANTIZED, **numbers: Any) -> Setting:
        """DMPQ and the cache at the target bits and skips, in the program of `kind`."""

        def make() -> Setting:
            base = replace(self.base(variant), **numbers)
            setting, _ = solve_both(
                self.study,
                kind,
                self.task,
                base,
                self.targets,
                (self.threshold_span_of(base), self.tau_span),
            )
            return setting

        key = f"both {variant} {kind} {sorted(numbers.items())}"
        return self._once(key, make)
