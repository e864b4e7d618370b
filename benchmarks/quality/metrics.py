"""Numbers of one row of the quality table, and of the difference between two rows."""

from typing import Any, NamedTuple

import numpy as np

from benchmarks.quality.runs import Samples, Task
from sixbit_jax.demo.scorer import score
from sixbit_jax.metrics import (
    latent_drift,
    mean_interval,
    paired_interval,
    psnr,
    ssim,
    temporal_consistency,
)
from sixbit_jax.policies import BlockGrid
from sixbit_jax.policies.bits import (
    activation_bits,
    effective_bits,
    route_shares,
    skip_fraction,
)
from sixbit_jax.routes import Route

QUALITY = (
    "psnr_db",
    "ssim",
    "latent_rel_l2",
    "attribute_score",
    "all_attributes",
    "temporal_consistency",
)
COST = ("activation_bits", "effective_bits", "skip_fraction")
SHARES = tuple(f"{route.name.lower()}_share" for route in Route)


class Measured(NamedTuple):
    """One number per sample, by name: `QUALITY`, `COST` and `SHARES`."""

    values: dict[str, np.ndarray]

    def mean_with(self, others: list["Measured"]) -> "Measured":
        """The mean over several draws of the same method, sample by sample."""
        every = [self, *others]
        return Measured(
            {
                name: np.mean([m.values[name] for m in every], axis=0)
                for name in self.values
            }
        )


def measure(
    samples: Samples, reference: np.ndarray, task: Task, grid: BlockGrid
) -> Measured:
    """All numbers of every sample.

    Args:
      samples: what a method made of `task`.
      reference: latents of the full-precision program for the same task.
      task: captions.
      grid: multiply-accumulates, for the bits.
    """
    latents = samples.latents
    videos = np.moveaxis(np.clip(latents, -1, 1), 2, -1)
    truth = np.moveaxis(np.clip(reference, -1, 1), 2, -1)
    right = score(latents, task.captions).correct
    values = {
        "psnr_db": psnr(videos, truth, data_range=2.0),
        "ssim": ssim(videos, truth, data_range=2.0),
        "latent_rel_l2": latent_drift(latents, reference),
        "attribute_score": right.mean(-1),
        "all_attributes": right.all(-1),
        "temporal_consistency": temporal_consistency(videos),
        **costs(samples, grid),
    }
    return Measured({k: np.asarray(v, np.float64) for k, v in values.items()})


def costs(samples: Samples, grid: BlockGrid) -> dict[str, np.ndarray]:
    """Bits, skips and route shares of every sample."""
    plans = list(zip(samples.trace.route, samples.trace.skip, strict=True))
    shares = [route_shares(route, skip, grid) for route, skip in plans]
    return {
        "activation_bits": np.array([activation_bits(r, s, grid) for r, s in plans]),
        "effective_bits": np.array([effective_bits(r, s, grid) for r, s in plans]),
        "skip_fraction": np.array([skip_fraction(s) for _, s in plans]),
        **{
            name: np.array([share[route] for share in shares])
            for route, name in zip(Route, SHARES, strict=True)
        },
    }


def _finite_interval(values: np.ndarray) -> tuple[float | None, list[float] | None]:
    """Mean and 95% interval; None where a value is infinite (PSNR of equal videos)."""
    if not np.isfinite(values).all():
        return None, None
    if values.size < 2:
        return float(values.mean()), None
    found = mean_interval(values)
    return found.mean, [found.low, found.high]


def summary(measured: Measured) -> dict[str, Any]:
    """Means, and 95% intervals of the quality numbers; null where undefined.

    The interval of `x` is `x_ci95`; that of `psnr_db` is `psnr_ci95`.
    """
    record: dict[str, Any] = {}
    for name in QUALITY + COST:
        mean, interval = _finite_interval(measured.values[name])
        record[name] = mean
        record[f"{name.removesuffix('_db')}_ci95"] = interval
    for name in SHARES:
        record[name] = float(measured.values[name].mean())
    return record


def difference(left: Measured, right: Measured, name: str) -> dict[str, Any]:
    """Mean of left - right over samples, its paired 95% interval, and the verdict.

    `outside` is true if the interval excludes 0, null if it is undefined.
    """
    a, b = left.values[name], right.values[name]
    if a.size < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return {"difference": None, "difference_ci95": None, "outside": None}
    found = paired_interval(a, b)
    return {
        "difference": found.mean,
        "difference_ci95": [found.low, found.high],
        "outside": bool(found.low > 0 or found.high < 0),
    }
