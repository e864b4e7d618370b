"""BGR on the NVFP4 grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from pallas_kernels.numerics import e2m1
from sixbit_jax.formats import NVFP4Array
from sixbit_jax.quantizers.refine_nvfp4 import refine_nvfp4
from tests.sixbit_jax.quantizers.weights import heavy_tailed, matrices, rotated


def to_nearest(w: np.ndarray, rotation: int = 0) -> NVFP4Array:
    return NVFP4Array.quantize(jnp.asarray(w), rotation=rotation)


def errors(w: np.ndarray, stored: NVFP4Array) -> np.ndarray:
    """Squared error of each block of 16, summed in float64."""
    difference = np.asarray(stored.dequantize(), np.float64) - w
    return (difference.reshape(*w.shape[:-1], -1, 16) ** 2).sum(-1)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(matrices((2, 3, 64)))
def test_no_block_is_worse_than_rounding_to_nearest(w):
    plain = errors(w, to_nearest(w))
    refined = errors(w, refine_nvfp4(w))
    size = (w.astype(np.float64).reshape(2, 3, 4, 16) ** 2).sum(-1)
    assert (refined <= plain * (1 + 1e-5) + 1e-12 * size).all()


@pytest.mark.parametrize(
    ("shape", "make", "limit"),
    [
        ((16, 512), heavy_tailed, 0.80),
        ((16, 512), lambda shape: rotated(heavy_tailed(shape)), 0.75),
    ],
    ids=["heavy tails", "rotated"],
)
def test_a_quarter_of_the_error_goes(shape, make, limit):
    w = make(shape)
    total = errors(w, refine_nvfp4(w)).sum() / errors(w, to_nearest(w)).sum()
    assert total < limit


def test_no_e4m3_scale_of_all_is_better():
    w = heavy_tailed((4, 64))
    refined = refine_nvfp4(w)
    unit = np.float32(refined.tensor_scale)
    scales = np.arange(1, 127, dtype=np.uint8).view(jnp.float8_e4m3fn)
    blocks = w.reshape(4, 4, 1, 16)
    steps = (scales.astype(np.float32) * unit)[:, None]
    rounded = np.asarray(e2m1.round_scaled(jnp.asarray(blocks), jnp.asarray(steps)))
    best = ((rounded * steps - blocks).astype(np.float64) ** 2).sum(-1).min(-1)
    np.testing.assert_allclose(errors(w, refined), best, rtol=1e-5)


def test_the_tensor_scale_is_doubled_where_that_is_exact():
    w = heavy_tailed((4, 64))
    w[0, :16] = 0.0
    plain = to_nearest(w)
    assert refine_nvfp4(w).tensor_scale == 2 * plain.tensor_scale
    # A scale of 3 * 2^-9 is subnormal, and half of it is not an E4M3 number.
    w[0, 0] = 6 * 3 * 2.0**-9 * np.float32(plain.tensor_scale)
    tiny = to_nearest(w)
    assert int(tiny.block_scales.view(jnp.uint8)[0, 0]) == 3
    assert refine_nvfp4(w).tensor_scale == tiny.tensor_scale


def test_it_is_an_ordinary_array():
    w = heavy_tailed((2, 8, 256))
    plain, refined = to_nearest(w, 128), refine_nvfp4(w, rotation=128)
    assert jax.tree.structure(plain) == jax.tree.structure(refined)
    for one, other in zip(
        jax.tree.leaves(plain), jax.tree.leaves(refined), strict=True
    ):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    turned = rotated(w)
    assert errors(turned, refined).sum() < errors(turned, plain).sum()
    # every matrix of a stack as if it were alone
    alone = refine_nvfp4(w[1], rotation=128)
    second = jax.tree.map(lambda leaf: leaf[1], refined)
    jax.tree.map(np.testing.assert_array_equal, alone, second)


def test_values_that_fit_stay_as_they_are():
    w = np.asarray(to_nearest(heavy_tailed((4, 64))).dequantize())
    np.testing.assert_array_equal(refine_nvfp4(w).dequantize(), w)
    zero = refine_nvfp4(np.zeros((2, 32), np.float32))
    np.testing.assert_array_equal(zero.dequantize(), np.zeros((2, 32)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_block_with_nan_or_inf_is_marked_and_alone(value):
    w = heavy_tailed((4, 64))
    w[1, 20] = value
    stored = np.asarray(refine_nvfp4(w).dequantize()).reshape(4, 4, 16)
    assert np.isnan(stored[1, 1]).all()
    assert np.isnan(stored).sum() == 16


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of 16"):
        refine_nvfp4(np.ones((4, 24), np.float32))
    with pytest.raises(ValueError, match="rotation 128"):
        refine_nvfp4(np.ones((4, 64), np.float32), rotation=128)
