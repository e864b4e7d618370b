"""Figures of merit of runs against a reference, and the rows of their table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from sixbit_jax.metrics import latent_drift, psnr, ssim, temporal_consistency
from sixbit_jax.report.runs import Run
from sixbit_jax.report.tables import byte_size
from sixbit_jax.routes import Route

_PIXEL_RANGE = 2.0
_SSIM_WINDOW = 11


def is_pixels(latents: Float[np.ndarray, "prompts F C H W"]) -> bool:
    """Whether latents can be shown as they are: three channels, no VAE."""
    return latents.shape[2] == 3


def _pixels(latents: np.ndarray) -> np.ndarray:
    return np.clip(np.moveaxis(latents, 2, -1), -1.0, 1.0)


def frame_psnr(run: Run, reference: Run) -> Float[np.ndarray, "prompts frames"]:
    """PSNR of every frame in dB; infinite where frames are equal."""
    error = np.square(_pixels(run.latents) - _pixels(reference.latents))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(_PIXEL_RANGE**2 / error.mean(axis=(2, 3, 4)))


def quality(run: Run, reference: Run) -> dict[str, list[float]]:
    """Per prompt: distance of a run's videos from the reference's.

    Returns:
      `latent_rel_l2`; for pixel models also `psnr_db`, `ssim` (frames of at least
      11x11) and `temporal_consistency` (of the run itself).
    """
    result = {"latent_rel_l2": latent_drift(run.latents, reference.latents)}
    if is_pixels(run.latents):
        mine, theirs = _pixels(run.latents), _pixels(reference.latents)
        result["psnr_db"] = psnr(mine, theirs, data_range=_PIXEL_RANGE)
        if min(mine.shape[2:4]) >= _SSIM_WINDOW:
            result["ssim"] = ssim(mine, theirs, data_range=_PIXEL_RANGE)
        if mine.shape[1] > 1:
            result["temporal_consistency"] = temporal_consistency(mine)
    return {name: [float(v) for v in values] for name, values in result.items()}


@dataclass(frozen=True)
class Comparison:
    """Runs of the same prompts and seeds; the first one is the reference.

    Attributes:
      prompts: captions, or names of the prompts.
      runs: at least one.
      scores: per run, what the demo's scorer read (empty for other models).
    """

    prompts: tuple[str, ...]
    runs: tuple[Run, ...]
    scores: tuple[Mapping[str, Any], ...] = ()

    @property
    def reference(self) -> Run:
        """The run that the others are compared with."""
        return self.runs[0]

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """One flat record per run, with the field names of `benchmarks`."""
        rows = []
        for number, run in enumerate(self.runs):
            row: dict[str, Any] = {
                "method": run.name,
                "description": run.configuration.description,
            }
            if number:
                merit = quality(run, self.reference)
                row |= {name: _mean(values) for name, values in merit.items()}
                row |= {f"{name}_each": values for name, values in merit.items()}
            elif is_pixels(run.latents) and run.latents.shape[1] > 1:
                values = temporal_consistency(_pixels(run.latents))
                row["temporal_consistency"] = float(np.mean(values))
            if self.scores:
                row |= self.scores[number]
            row |= run.cost()
            row |= {
                "weight_bytes": run.weight_bytes,
                "cache_bytes": run.cache_bytes,
                "temporary_bytes": run.temporary_bytes,
                "seconds": _mean(run.seconds),
                "seconds_each": list(run.seconds),
                "compile_seconds": run.compile_seconds,
            }
            rows.append(row)
        return rows


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


_ALWAYS = {f"share_{name}" for name in ("nvfp4", "int8", "bf16")}
_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("attribute_score", "attributes right", lambda v: f"{100 * v:.0f} %"),
    ("psnr_db", "PSNR to the reference", lambda v: f"{v:.2f} dB"),
    ("ssim", "SSIM to the reference", lambda v: f"{v:.4f}"),
    ("latent_rel_l2", "latents, relative L2", lambda v: f"{v:.4f}"),
    ("temporal_consistency", "temporal consistency", lambda v: f"{v:.4f}"),
    ("activation_bits", "activation bits", lambda v: f"{v:.2f}"),
    ("effective_bits", "effective bits", lambda v: f"{v:.2f}"),
    ("skip_fraction", "blocks skipped", lambda v: f"{100 * v:.1f} %"),
    *(
        (f"share_{route.name.lower()}", f"of what ran in {route.name}", _share)
        for route in Route
    ),
    ("share_int8_scores", "blocks with INT8 attention scores", _share),
    ("density", "blocks of keys computed", _share),
    ("weight_bytes", "weights", byte_size),
    ("cache_bytes", "delta cache", lambda v: byte_size(v) if v else "none"),
    ("temporary_bytes", "working memory", byte_size),
    ("seconds", "seconds per video", lambda v: f"{v:.1f}"),
    ("compile_seconds", "seconds to compile", lambda v: f"{v:.1f}"),
)


def table_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Column names and rows: one column per run, one row per figure of merit."""
    records = comparison.records
    rows = []
    for key, name, form in _ROWS:
        rare = key.startswith("share_") and key not in _ALWAYS
        if key == "density" and all(record[key] == 1.0 for record in records):
            continue
        if rare and not any(record.get(key) for record in records):
            continue
        cells = [form(r[key]) if key in r else "–" for r in records]
        if any(cell != "–" for cell in cells):
            rows.append([name, *cells])
    return ["", *(run.name for run in comparison.runs)], rows
