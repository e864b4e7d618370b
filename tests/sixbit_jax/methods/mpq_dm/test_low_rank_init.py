"""Low-rank adapters that start from the quantization error."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.formats.uniform_grid import decode_uniform, encode_uniform, minmax_grid
from sixbit_jax.methods.mpq_dm.low_rank_init import low_rank, zero_adapter


def rounded(w, grid):
    return decode_uniform(encode_uniform(w, grid, 3), grid)


@pytest.fixture(scope="module")
def w() -> np.ndarray:
    rng = np.random.default_rng(0)
    planted = 3 * rng.standard_normal((2, 24, 2)) @ rng.standard_normal((2, 2, 32))
    return (rng.standard_normal((2, 24, 32)) + planted).astype(np.float32)


def test_low_rank_is_the_truncated_svd(w):
    adapter = low_rank(w, 4)
    u, s, v = np.linalg.svd(w.astype(np.float64), full_matrices=False)
    best = (u[..., :4] * s[:, None, :4]) @ v[:, :4]
    np.testing.assert_allclose(adapter.matrix(), best, atol=1e-4)
    assert adapter.down.shape == (2, 4, 32)
    assert adapter.up.shape == (2, 24, 4)
    # The singular values are split evenly.
    down, up = np.asarray(adapter.down), np.asarray(adapter.up)
    np.testing.assert_allclose(
        np.linalg.norm(down, axis=-1), np.linalg.norm(up, axis=-2), rtol=1e-4
    )


def test_outside_is_the_best_correction_and_inside_is_not(w):
    quantize = partial(rounded, grid=minmax_grid(w, 3))
    error = w - np.asarray(quantize(w))
    adapter = low_rank(error, 4)

    def distance(placement: str) -> float:
        product = adapter.matrix()
        outside = placement == "outside"
        found = quantize(w) + product if outside else quantize(w + product)
        return float(jnp.square(w - found).sum())

    rest = np.linalg.svd(error.astype(np.float64), compute_uv=False)[:, 4:]
    np.testing.assert_allclose(distance("outside"), (rest**2).sum(), rtol=1e-3)
    assert distance("outside") < 0.9 * (error**2).sum()
    assert distance("outside") < 0.9 * distance("inside")


def test_zero_adapter_changes_nothing(w):
    adapter = zero_adapter(w.shape, 4)
    np.testing.assert_array_equal(adapter.matrix(), jnp.zeros(w.shape))


def test_refuses_ranks(w):
    with pytest.raises(ValueError, match=r"found 25 for the shape \(2, 24, 32\)"):
        low_rank(w, 25)
    with pytest.raises(ValueError, match="found 0"):
        zero_adapter(w.shape, 0)
