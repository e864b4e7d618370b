"""Traces made by hand for the report's tests."""

import numpy as np

from sixbit_jax.routes import Route
from sixbit_jax.sampling.trace import Trace

SITES = ("attn_in", "attn_out", "ff_in", "ff_mid")


def make_trace(
    steps: int = 6,
    branches: int = 2,
    blocks: int = 3,
    *,
    route: Route = Route.INT8,
    skip_step: int | None = 3,
    seed: int = 0,
) -> Trace:
    """Random gammas; one step in which block 1 of every branch is skipped."""
    rng = np.random.default_rng(seed)
    shape = (steps, branches, blocks)
    skip = np.zeros(shape, bool)
    if skip_step is not None:
        skip[skip_step, :, 1] = True
    refresh = np.zeros(shape, bool)
    refresh[1:] = skip[:-1]
    gamma = np.where(skip, 0.0, rng.uniform(0.01, 0.5, shape)).astype(np.float32)
    return Trace(
        timestep=np.arange(steps)[::-1],
        skip=skip,
        refresh=refresh,
        route=np.full((*shape, len(SITES)), route, np.int32),
        gamma=gamma,
        delta_change=gamma / 2,
        outlier=np.zeros((*shape, len(SITES)), np.float32),
        error=np.full((*shape, len(SITES)), np.nan, np.float32),
        output_change=np.ones(steps, np.float32),
        int8_scores=np.zeros(shape, bool),
        attention_density=np.where(skip, 0.0, 1.0).astype(np.float32),
    )
