"""Synthetic recordings with a known law."""

import numpy as np

from sixbit_jax.calibration import Recording

BLOCKS, SITES = 3, ("attn_in", "attn_out", "ff_in", "ff_mid")


def law() -> tuple[np.ndarray, np.ndarray]:
    """alpha and beta of every block and site."""
    alpha = np.linspace(0.05, 0.6, BLOCKS * 4).reshape(BLOCKS, 4)
    return alpha, np.linspace(0.12, 0.02, BLOCKS * 4).reshape(BLOCKS, 4)


def recording(runs=4, steps=12, noise=0.0, skips=0.0, seed=0) -> Recording:
    rng = np.random.default_rng(seed)
    gamma = rng.uniform(0.02, 0.5, (runs, steps, 2, BLOCKS))
    skip = rng.random(gamma.shape) < skips
    skip[:, :2] = False
    gamma = np.where(skip, 0.0, gamma)
    alpha, beta = law()
    empty = Recording(gamma, np.zeros((*gamma.shape, 4)), skip)
    error = alpha * empty.known_gamma()[..., None] + beta
    error += noise * rng.standard_normal(error.shape)
    error[:, 0] = 0.3  # the first step has a error, and no gamma before it
    error[skip] = np.nan
    return Recording(gamma, error, skip)
