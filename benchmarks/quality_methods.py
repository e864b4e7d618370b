"""The rows of the quality table, and the calibration that each of them needs."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.quality_calibrate import (
    Recording,
    Targets,
    assign,
    fit,
    per_site_thresholds,
    solve,
    solve_both,
    span_of,
)
from benchmarks.quality_policies import Setting, num_steps
from benchmarks.quality_runs import (
    FLOAT32,
    FULL,
    QUANTIZED,
    UNROTATED,
    Kind,
    Study,
    Task,
)
from sixbit_jax.calibration import best_static_routes
from sixbit_jax.policies import ErrorPredictor, uniform_skips
from sixbit_jax.routes import Route


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
      name: of the row.
      description: one line for readers.
      kind: the program it runs in.
      settings: one, or several draws whose numbers are averaged sample by sample.
      numbers: what the calibration found, for the record.
    """

    name: str
    description: str
    kind: Kind
    settings: tuple[Setting, ...]
    numbers: dict[str, Any] = field(default_factory=dict)


class Calibrated:
    """Makes methods; calibrates on first need, so that a run of few rows is quick.

    Args:
      study: programs.
      recording: of the calibration captions.
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
    def threshold_span(self) -> tuple[float, float]:
        """Predicted errors of all sites and steps."""
        alpha, beta = self.predictor.alpha, self.predictor.beta
        return span_of(alpha * self.recording.gamma[..., None] + beta)

    @property
    def tau_span(self) -> tuple[float, float]:
        """Delta changes; E_acc + e reaches twice e at the second skip."""
        return span_of(self.recording.delta_change, low=0.9, high=3.0)

    @property
    def step_span(self) -> tuple[float, float]:
        """Output changes, up to five of which accumulate."""
        return span_of(self.recording.output_change, low=0.5, high=5.0)

    def dmpq(self) -> Setting:
        """DMPQ at the target bits."""

        def make() -> Setting:
            base = Setting(predictor=self.predictor)
            found = solve(
                self.study,
                QUANTIZED,
                self.task,
                lambda x: replace(base, threshold=x),
                "activation_bits",
                self.targets.bits,
                self.threshold_span,
                points=self.targets.points,
            )
            return replace(base, threshold=found.value)

        return self._once("dmpq", make)

    def dmpq_per_site(self) -> Setting:
        """DMPQ with one threshold per site, at the target bits."""

        def make() -> Setting:
            def setting(share: float) -> Setting:
                levels = per_site_thresholds(self.recording, self.predictor, share)
                return Setting(predictor=self.predictor, threshold=levels)

            found = solve(
                self.study,
                QUANTIZED,
                self.task,
                setting,
                "activation_bits",
                self.targets.bits,
                (0.2, 0.8),
                points=self.targets.points,
                geometric=False,
            )
            return setting(found.value)

        return self._once("dmpq_per_site", make)

    def skipping(
        self,
        name: str,
        with_number: Callable[[Setting, float], Setting],
        span: tuple[float, float],
    ) -> Setting:
        """Full precision with a cache's number at the target skip fraction."""
        base, kind = Setting(), FULL

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

    def both(self, *, purified: bool) -> Setting:
        """DMPQ and the cache at the target bits and skips."""

        def make() -> Setting:
            base = Setting(predictor=self.predictor)
            if purified:
                base = replace(base, outlier_ratio=25.0, refresh_int8=True)
            setting, _ = solve_both(
                self.study,
                QUANTIZED,
                self.task,
                base,
                self.targets,
                (self.threshold_span, self.tau_span),
            )
            return setting

        return self._once(f"both {purified}", make)


def numbers_of(setting: Setting) -> dict[str, Any]:
    """The tuned numbers of a setting, for the record."""
    threshold = setting.threshold
    if isinstance(threshold, tuple):
        threshold = list(threshold)
    return {
        "threshold": threshold,
        "tau": setting.tau,
        "step_cache_threshold": setting.step_cache,
        "outlier_ratio": setting.outlier_ratio,
        "refresh_int8": setting.refresh_int8,
    }


def _with_tau(setting: Setting, tau: float) -> Setting:
    return replace(setting, tau=tau)


def _with_step_cache(setting: Setting, threshold: float) -> Setting:
    return replace(setting, step_cache=threshold)


Maker = Callable[[Calibrated], tuple[Setting, ...]]


def _one(make: Callable[[Calibrated], Setting]) -> Maker:
    return lambda calibrated: (make(calibrated),)


def _route(route: Route) -> Maker:
    return lambda calibrated: (Setting(route=route),)


def _alternate(axis: int) -> Maker:
    def make(c: Calibrated) -> tuple[Setting, ...]:
        grid = c.study.grid
        shape = (num_steps(grid), grid.num_blocks, len(grid.sites))
        odd = np.indices(shape)[axis] % 2
        return (Setting(route=np.where(odd, Route.NVFP4, Route.INT8)),)

    return make


def _static(per_mac: bool) -> Maker:
    def make(c: Calibrated) -> tuple[Setting, ...]:
        route = best_static_routes(
            c.recording.for_fit(),
            c.study.grid,
            target_bits=c.targets.bits,
            per_mac=per_mac,
        )
        return (Setting(route=route),)

    return make


def _schedule(c: Calibrated) -> tuple[Setting, ...]:
    error = c.recording.error.mean((0, 2))
    return (Setting(route=assign(error, c.study.grid, c.targets.bits)),)


def _pdr(rule_a: bool, rule_b: bool) -> Maker:
    def make(c: Calibrated) -> tuple[Setting, ...]:
        base = c.both(purified=False)
        ratio = 25.0 if rule_a else None
        return (replace(base, outlier_ratio=ratio, refresh_int8=rule_b),)

    return make


def _default(c: Calibrated) -> tuple[Setting, ...]:
    return (c.both(purified=True),)


def _skip_uniformly(c: Calibrated) -> tuple[Setting, ...]:
    steps = num_steps(c.study.grid)
    # Very short runs have no room for the share: the warm-up and the last step run.
    room = max(steps - 3, 0) / steps
    return (Setting(skip=uniform_skips(steps, min(c.targets.skips, room))),)


_SIXBIT = "DMPQ + TDC + PDR"
ROWS: dict[str, tuple[str, Kind, Maker]] = {
    "w4a16": ("NVFP4 weights, 16-bit activations", QUANTIZED, _route(Route.BF16)),
    "w4a8": ("NVFP4 weights, INT8 everywhere", QUANTIZED, _route(Route.INT8)),
    "w4a4": ("NVFP4 weights, NVFP4 everywhere", QUANTIZED, _route(Route.NVFP4)),
    "dmpq": (
        "DMPQ, one threshold",
        QUANTIZED,
        _one(Calibrated.dmpq),
    ),
    "static": (
        "static assignment, INT8 where mean E_rel is largest",
        QUANTIZED,
        _static(False),
    ),
    "random": (
        "INT8 at random sites, drawn anew each step; mean of 3 draws",
        QUANTIZED,
        lambda c: tuple(Setting(random_seed=s) for s in range(3)),
    ),
    "alternate_steps": ("INT8 at every second step", QUANTIZED, _alternate(0)),
    "alternate_blocks": ("INT8 in every second block", QUANTIZED, _alternate(1)),
    "sixbit": (f"{_SIXBIT}: the recommended default", QUANTIZED, _default),
    "tdc": (
        "TDC on full precision",
        FULL,
        _one(lambda c: c.skipping("tdc", _with_tau, c.tau_span)),
    ),
    "step_cache": (
        "whole-step cache on full precision",
        FULL,
        _one(lambda c: c.skipping("step_cache", _with_step_cache, c.step_span)),
    ),
    "dmpq_tdc": ("DMPQ + TDC, no PDR", QUANTIZED, _pdr(False, False)),
    "dmpq_tdc_rule_a": ("DMPQ + TDC + PDR rule A", QUANTIZED, _pdr(True, False)),
    "dmpq_tdc_rule_b": ("DMPQ + TDC + PDR rule B", QUANTIZED, _pdr(False, True)),
    "dmpq_tdc_pdr": (f"{_SIXBIT}, numbers of DMPQ + TDC", QUANTIZED, _pdr(True, True)),
    "schedule": (
        "mean E_rel of each step, block and site, from calibration",
        QUANTIZED,
        _schedule,
    ),
    "dmpq_per_site": (
        "DMPQ, one threshold per site",
        QUANTIZED,
        _one(Calibrated.dmpq_per_site),
    ),
    "sixbit_cache_int8": (
        f"{_SIXBIT}, INT8 cache",
        Kind(cache_format="int8"),
        _default,
    ),
    "sixbit_cache_nvfp4": (
        f"{_SIXBIT}, NVFP4 cache",
        Kind(cache_format="nvfp4"),
        _default,
    ),
    "static_per_mac": (
        "static assignment, INT8 where mean E_rel per MAC is largest",
        QUANTIZED,
        _static(True),
    ),
    "uniform_skips": ("every n-th step skipped, full precision", FULL, _skip_uniformly),
    "w4a4_unrotated": ("W4A4 without Hadamard", UNROTATED, _route(Route.NVFP4)),
    "w4a8_unrotated": ("W4A8 without Hadamard", UNROTATED, _route(Route.INT8)),
    "full_precision_float32": (
        "float32 arithmetic: how far rounding alone moves a sample",
        FLOAT32,
        _route(Route.BF16),
    ),
}

COMPARISONS = (
    *(("dmpq", other, "psnr_db") for other in ("static", "random", "alternate_steps")),
    ("dmpq", "alternate_blocks", "psnr_db"),
    ("dmpq", "static_per_mac", "psnr_db"),
    ("dmpq", "schedule", "psnr_db"),
    ("dmpq_per_site", "dmpq", "psnr_db"),
    ("w4a8", "dmpq", "psnr_db"),
    ("dmpq", "w4a4", "psnr_db"),
    ("tdc", "step_cache", "psnr_db"),
    ("tdc", "uniform_skips", "psnr_db"),
    ("dmpq_tdc_rule_a", "dmpq_tdc", "psnr_db"),
    ("dmpq_tdc_rule_b", "dmpq_tdc", "psnr_db"),
    ("dmpq_tdc_pdr", "dmpq_tdc", "psnr_db"),
    ("sixbit_cache_int8", "sixbit", "psnr_db"),
    ("sixbit_cache_nvfp4", "sixbit", "psnr_db"),
    ("w4a4", "w4a4_unrotated", "psnr_db"),
    ("w4a8", "w4a8_unrotated", "psnr_db"),
    *(
        (name, "full_precision", "attribute_score")
        for name in ("w4a16", "w4a8", "w4a4", "dmpq", "tdc", "step_cache", "sixbit")
    ),
)
"""(row, row, number): paired differences that the results file reports."""


def make_method(name: str, calibrated: Calibrated) -> Method:
    """A row with its numbers; calibrates what it needs.

    Raises:
      ValueError: no such row.
    """
    if name not in ROWS:
        raise ValueError(f"method: expected one of {', '.join(ROWS)}; found {name!r}")
    description, kind, maker = ROWS[name]
    settings = maker(calibrated)
    return Method(name, description, kind, settings, numbers_of(settings[0]))
