"""The rows of the quality table: what each runs, and what is compared with what."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.quality.calibrate import assign
from benchmarks.quality.methods import Calibrated
from benchmarks.quality.policies import Setting, num_steps
from benchmarks.quality.runs import (
    ATTENTION_8_BIT,
    ATTENTION_8_BIT_STEPS,
    FLOAT32,
    FULL,
    FULL_STEPS,
    QUANTIZED,
    REFINED,
    REFINED_STEPS,
    UNROTATED,
    Kind,
)
from sixbit_jax.calibration import best_static_routes
from sixbit_jax.policies import uniform_skips
from sixbit_jax.routes import Route


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
      name: the name of the row.
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
        "residual": setting.residual,
        "final_int8": setting.final_int8,
        "importance": None
        if setting.importance is None
        else np.round(setting.importance, 6).tolist(),
        "together": setting.together,
        "shared": setting.shared,
        "max_skips": setting.max_skips,
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


def _static_damage(c: Calibrated) -> tuple[Setting, ...]:
    return (Setting(route=assign(c.damage / c.work, c.study.grid, c.targets.bits)),)


def _dmpq(variant: str) -> Maker:
    return lambda c: (c.dmpq(variant),)


def _tdc(name: str, kind: Kind = FULL, **numbers: Any) -> Maker:
    return lambda c: (c.skipping(name, _with_tau, c.tau_span, kind=kind, **numbers),)


def _pdr(rule_a: bool, rule_b: bool) -> Maker:
    """The paper's DMPQ and TDC, tuned without PDR, and PDR's rules on top."""

    def make(c: Calibrated) -> tuple[Setting, ...]:
        ratio = 25.0 if rule_a else None
        base = c.both("")
        return (replace(base, outlier_ratio=ratio, refresh_int8=rule_b),)

    return make


def _paper(c: Calibrated) -> tuple[Setting, ...]:
    return (c.both("", outlier_ratio=25.0, refresh_int8=True),)


def _sixbit(kind: Kind, **numbers: Any) -> Maker:
    """The default, tuned in the program that it runs in."""
    chosen = {"together": None, "shared": True, "refresh_int8": True} | numbers
    return lambda c: (c.both("damage final", kind=kind, **chosen),)


def _skip_uniformly(c: Calibrated) -> tuple[Setting, ...]:
    steps = num_steps(c.study.grid)
    # Very short runs have no room for the share: the warm-up and the last step run.
    room = max(steps - 3, 0) / steps
    return (Setting(skip=uniform_skips(steps, min(c.targets.skips, room))),)


_SIXBIT = (
    "refined weights, DMPQ (measured importance, last steps INT8), TDC (blocks and "
    "branches decide together), rule B"
)
_RTN_STEPS = Kind(group=None)
_CACHE_INT8 = Kind("nvfp4_refined", cache_format="int8", group=None)
_CACHE_NVFP4 = Kind("nvfp4_refined", cache_format="nvfp4", group=None)
ROWS: dict[str, tuple[str, Kind, Maker]] = {
    "w4a16": ("NVFP4 weights, 16-bit activations", QUANTIZED, _route(Route.BF16)),
    "w4a8": ("NVFP4 weights, INT8 everywhere", QUANTIZED, _route(Route.INT8)),
    "w4a4": ("NVFP4 weights, NVFP4 everywhere", QUANTIZED, _route(Route.NVFP4)),
    "dmpq": ("DMPQ, the paper's rule: E_rel, one threshold", QUANTIZED, _dmpq("")),
    "static": (
        "static assignment, INT8 where mean E_rel is largest",
        QUANTIZED,
        _static(False),
    ),
    "static_per_mac": (
        "static assignment, INT8 where mean E_rel per MAC is largest",
        QUANTIZED,
        _static(True),
    ),
    "static_damage": (
        "static assignment, INT8 where measured damage per MAC is largest",
        QUANTIZED,
        _static_damage,
    ),
    "dmpq_per_mac": ("DMPQ, E_rel per MAC", QUANTIZED, _dmpq("per_mac")),
    "dmpq_residual": (
        "DMPQ, error relative to the residual stream",
        QUANTIZED,
        _dmpq("residual"),
    ),
    "dmpq_residual_per_mac": (
        "DMPQ, error relative to the residual stream, per MAC",
        QUANTIZED,
        _dmpq("residual per_mac"),
    ),
    "dmpq_damage": ("DMPQ, measured importance", QUANTIZED, _dmpq("damage")),
    "dmpq_damage_final": (
        "DMPQ, measured importance, last three steps INT8",
        QUANTIZED,
        _dmpq("damage final"),
    ),
    "random": (
        "INT8 at random sites, drawn anew each step; mean of 3 draws",
        QUANTIZED,
        lambda c: tuple(Setting(random_seed=s) for s in range(3)),
    ),
    "alternate_steps": ("INT8 at every second step", QUANTIZED, _alternate(0)),
    "alternate_blocks": ("INT8 in every second block", QUANTIZED, _alternate(1)),
    "sixbit": (f"default: {_SIXBIT}", REFINED_STEPS, _sixbit(REFINED_STEPS)),
    "tdc": ("TDC on full precision, the paper's rule", FULL, _tdc("tdc")),
    "tdc_together": (
        "TDC on full precision, all blocks decide as one",
        FULL_STEPS,
        _tdc("tdc_together", FULL_STEPS, together=None),
    ),
    "tdc_shared": (
        "TDC on full precision, blocks and branches decide as one",
        FULL_STEPS,
        _tdc("tdc_shared", FULL_STEPS, together=None, shared=True),
    ),
    "tdc_shared_four": (
        "the same, up to four skips in a row",
        FULL_STEPS,
        _tdc("tdc_shared_four", FULL_STEPS, together=None, shared=True, max_skips=4),
    ),
    "tdc_branches": (
        "TDC on full precision, branches decide as one, blocks alone",
        FULL,
        _tdc("tdc_branches", shared=True),
    ),
    "tdc_pairs": (
        "TDC on full precision, two neighbours decide as one",
        FULL,
        _tdc("tdc_pairs", together=2),
    ),
    "tdc_residual": (
        "TDC on full precision, change relative to the residual stream",
        FULL,
        _tdc("tdc_residual", residual_delta=True),
    ),
    "tdc_one_skip": (
        "TDC on full precision, one skip in a row",
        FULL,
        _tdc("tdc_one_skip", max_skips=1),
    ),
    "step_cache": (
        "whole-step cache on full precision",
        FULL_STEPS,
        _one(
            lambda c: c.skipping(
                "step_cache", _with_step_cache, c.step_span, kind=FULL_STEPS
            )
        ),
    ),
    "dmpq_tdc": ("DMPQ + TDC, no PDR", QUANTIZED, _pdr(False, False)),
    "dmpq_tdc_rule_a": ("DMPQ + TDC + PDR rule A", QUANTIZED, _pdr(True, False)),
    "dmpq_tdc_rule_b": ("DMPQ + TDC + PDR rule B", QUANTIZED, _pdr(False, True)),
    "dmpq_tdc_pdr": ("DMPQ + TDC + PDR, both rules", QUANTIZED, _pdr(True, True)),
    "schedule": (
        "mean E_rel of each step, block and site, from calibration",
        QUANTIZED,
        _schedule,
    ),
    "sixbit_paper": (
        "the paper's DMPQ + TDC + PDR, tuned together",
        QUANTIZED,
        _paper,
    ),
    "sixbit_no_skips": (
        "the default without skips",
        REFINED,
        lambda c: (c.dmpq("damage final", REFINED),),
    ),
    "sixbit_alone": (
        "the default, every block and branch decides alone",
        REFINED,
        _sixbit(REFINED, together=1, shared=False),
    ),
    "sixbit_rtn": (
        "the default on weights rounded to nearest",
        _RTN_STEPS,
        _sixbit(_RTN_STEPS),
    ),
    "sixbit_cache_int8": (
        "the default, INT8 cache",
        _CACHE_INT8,
        _sixbit(_CACHE_INT8),
    ),
    "sixbit_cache_nvfp4": (
        "the default, NVFP4 cache",
        _CACHE_NVFP4,
        _sixbit(_CACHE_NVFP4),
    ),
    "uniform_skips": (
        "every n-th step skipped, full precision",
        FULL_STEPS,
        _skip_uniformly,
    ),
    "w4a8_attention8": ("W4A8, 8-bit attention", ATTENTION_8_BIT, _route(Route.INT8)),
    "sixbit_attention8": (
        "the default, 8-bit attention",
        ATTENTION_8_BIT_STEPS,
        _sixbit(REFINED_STEPS),
    ),
    "w4a8_refined": ("W4A8, refined weights (BGR)", REFINED, _route(Route.INT8)),
    "w4a4_refined": ("W4A4, refined weights (BGR)", REFINED, _route(Route.NVFP4)),
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
    *(
        ("dmpq_damage_final", other, "psnr_db")
        for other in (
            "dmpq",
            "dmpq_damage",
            "static",
            "static_per_mac",
            "static_damage",
            "random",
            "alternate_steps",
            "alternate_blocks",
            "w4a4",
        )
    ),
    ("w4a8", "dmpq_damage_final", "psnr_db"),
    ("dmpq_residual", "dmpq", "psnr_db"),
    ("dmpq_residual_per_mac", "static_per_mac", "psnr_db"),
    ("tdc_together", "step_cache", "psnr_db"),
    ("tdc_together", "tdc", "psnr_db"),
    ("tdc_shared", "tdc_together", "psnr_db"),
    ("tdc_shared", "step_cache", "psnr_db"),
    ("tdc_shared", "uniform_skips", "psnr_db"),
    ("tdc_shared_four", "step_cache", "psnr_db"),
    ("tdc_branches", "tdc", "psnr_db"),
    ("sixbit", "sixbit_no_skips", "psnr_db"),
    ("sixbit", "w4a8_refined", "psnr_db"),
    ("sixbit", "sixbit_rtn", "psnr_db"),
    ("w4a8_attention8", "w4a8", "psnr_db"),
    ("sixbit_attention8", "sixbit", "psnr_db"),
    ("w4a8_refined", "w4a8", "psnr_db"),
    ("w4a4_refined", "w4a4", "psnr_db"),
    ("sixbit", "sixbit_paper", "psnr_db"),
    ("sixbit", "sixbit_alone", "psnr_db"),
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
