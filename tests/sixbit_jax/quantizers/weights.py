"""Weights that quantizers find easy and hard."""

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from pallas_kernels.numerics import hadamard


def heavy_tailed(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Normal weights with 0.3% of them 4 to 8 times larger."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape)
    outliers = rng.random(shape) < 0.003
    return np.where(outliers, w * rng.uniform(4, 8, shape), w).astype(np.float32)


def rotated(w: np.ndarray) -> np.ndarray:
    return np.asarray(hadamard.block_hadamard(jnp.asarray(w), 128))


@st.composite
def matrices(draw: st.DrawFn, shape: tuple[int, ...]) -> np.ndarray:
    """Floats of one shape from very different distributions and sizes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(("normal", "heavy", "shifted", "coarse", "rows")))
    w = rng.standard_normal(shape)
    if kind == "heavy":
        w = rng.standard_t(1.5, shape)
    elif kind == "shifted":
        w = w + rng.uniform(-4, 4)
    elif kind == "coarse":
        w = np.round(w)
    elif kind == "rows":
        w = w * 2.0 ** rng.integers(-20, 20, shape[:-1])[..., None]
    if draw(st.booleans()):
        w[..., 0, :] = 0.0
    return (w * 10.0 ** draw(st.integers(-8, 8))).astype(np.float32)
