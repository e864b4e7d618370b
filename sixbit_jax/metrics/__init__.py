"""Quality of videos and latents, and means with confidence intervals."""

from sixbit_jax.metrics.latents import latent_drift
from sixbit_jax.metrics.statistics import Interval, mean_interval, paired_interval
from sixbit_jax.metrics.video import psnr, ssim, temporal_consistency

__all__ = [
    "Interval",
    "latent_drift",
    "mean_interval",
    "paired_interval",
    "psnr",
    "ssim",
    "temporal_consistency",
]
