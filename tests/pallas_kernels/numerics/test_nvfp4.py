"""NVFP4 against the NumPy oracle, and its properties."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.numerics import e2m1, nvfp4
from tests.pallas_kernels.numerics import oracle

quantize = jax.jit(nvfp4.quantize)
fake_quantize = jax.jit(nvfp4.fake_quantize)
KINDS = tuple(oracle.tensors(2, 32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("jitted", [True, False])
def test_codes_and_scales_are_the_oracles(kind, jitted):
    x = oracle.tensors()[kind]
    codes, scales, tensor = (quantize if jitted else nvfp4.quantize)(x)
    expected_codes, expected_scales, expected_tensor = oracle.nvfp4(x)
    assert scales.dtype == ml_dtypes.float8_e4m3fn
    assert float(tensor) == float(expected_tensor)
    np.testing.assert_array_equal(
        np.asarray(scales).view(np.uint8), expected_scales.view(np.uint8)
    )
    np.testing.assert_array_equal(e2m1.unpack(codes), expected_codes)


@pytest.mark.parametrize("kind", KINDS)
def test_dequantized_values_are_exact_in_float32(kind):
    x = oracle.tensors()[kind]
    expected = oracle.nvfp4_values(*oracle.nvfp4(x))
    # computed by NumPy in float64: equality says that float32 rounded nothing
    np.testing.assert_array_equal(nvfp4.dequantize(*quantize(x)), expected)
    np.testing.assert_array_equal(fake_quantize(x), expected)


def test_tensor_scale_is_amax_over_2688_to_17_bits():
    x = oracle.tensors()["random"]
    scale = float(nvfp4.tensor_scale_of(x))
    assert scale == pytest.approx(np.abs(x).max() / 2688, rel=2**-17)


def test_small_weights_keep_their_values():
    # One scale level would round every block scale (about 5e-4) to zero.
    x = oracle.tensors()["random"] * np.float32(1e-3)
    error = np.abs(fake_quantize(x) - x).sum() / np.abs(x).sum()
    assert error < 0.1


def test_leading_axes_are_separate_tensors():
    kinds = oracle.tensors(8, 64)
    x = np.stack([[kinds["random"], kinds["tiny"]], [kinds["huge"], kinds["zero"]]])
    codes, scales, tensor = quantize(x)
    assert codes.shape == (2, 2, 8, 32)
    assert scales.shape == (2, 2, 8, 4)
    assert tensor.shape == (2, 2)
    for index in np.ndindex(2, 2):
        for ours, alone in zip(
            (codes[index], scales[index], tensor[index]),
            quantize(x[index]),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, alone)


def test_vmap_and_scan_give_the_same_codes():
    x = np.stack(list(oracle.tensors(8, 64).values()))
    together = quantize(x)
    mapped = jax.jit(jax.vmap(nvfp4.quantize))(x)
    _, scanned = jax.lax.scan(lambda c, y: (c, nvfp4.quantize(y)), 0, x)
    for other in (mapped, scanned):
        jax.tree.map(np.testing.assert_array_equal, other, together)


def test_a_known_tensor_scale_is_used_as_it_is():
    x = oracle.tensors()["random"]
    given_scale = np.float32(0.0123456789)
    codes, scales, tensor = nvfp4.quantize(x, given_scale)
    assert float(tensor) == float(given_scale)
    values = nvfp4.dequantize(codes, scales, tensor)
    assert float(jnp.abs(values - x).sum() / np.abs(x).sum()) < 0.2


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_bad_value_stays_in_its_block(poison):
    x = oracle.tensors(4, 64)["random"]
    expected = np.asarray(fake_quantize(x)).copy()
    biggest = np.unravel_index(np.abs(x).argmax(), x.shape)
    row = (biggest[0] + 1) % 4
    x[row, 20] = poison
    values = np.asarray(fake_quantize(x)).copy()
    assert np.isnan(values[row, 16:32]).all()
    values[row, 16:32] = expected[row, 16:32]
    np.testing.assert_array_equal(values, expected)
    _, scales, tensor = quantize(x)
    assert np.isfinite(tensor)
    assert np.isnan(np.asarray(scales, np.float32)).sum() == 1


def test_nan_is_noticed_at_every_place_of_a_block():
    x = np.ones((64, 64), np.float32)
    np.fill_diagonal(x, np.nan)
    _, scales, _ = quantize(x)
    bad = np.isnan(np.asarray(scales, np.float32))
    np.testing.assert_array_equal(bad, np.arange(64)[:, None] // 16 == np.arange(4))


@pytest.mark.parametrize("shape", [(16,), (4, 24), (4, 8)])
def test_shapes_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="multiple of 16, found shape"):
        nvfp4.quantize(jnp.zeros(shape))


def _draw(seed: int, spread: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.exp2(rng.uniform(-spread, spread, (8, 1)))
    return (rng.standard_normal((8, 64)) * rows).astype(np.float32)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0, 9))
def test_error_is_bounded_in_every_block(seed, spread):
    x = _draw(seed, spread)
    codes, scales, tensor = quantize(x)
    error = np.abs(nvfp4.dequantize(codes, scales, tensor) - x).reshape(8, 4, 16)
    step = np.asarray(scales, np.float32) * np.asarray(tensor)
    clipped = np.abs(x).reshape(8, 4, 16).max(-1) - 6 * step
    # half of the widest gap (4 to 6), or what lies beyond 6
    assert (error.max(-1) <= np.maximum(step, clipped) * (1 + 1e-6)).all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0, 4))
def test_quantizing_twice_changes_nothing(seed, spread):
    once = fake_quantize(_draw(seed, spread))
    np.testing.assert_array_equal(fake_quantize(once), once)
    jax.tree.map(
        np.testing.assert_array_equal, quantize(once), quantize(_draw(seed, spread))
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), power=st.integers(-60, 60))
def test_a_power_of_two_moves_only_the_tensor_scale(seed, power):
    x = _draw(seed, 3.0)
    factor = np.float32(2.0**power)
    codes, scales, tensor = quantize(x)
    moved_codes, moved_scales, moved_tensor = quantize(x * factor)
    np.testing.assert_array_equal(moved_codes, codes)
    np.testing.assert_array_equal(moved_scales, scales)
    assert float(moved_tensor) == float(tensor * factor)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_sign_symmetry(seed):
    x = _draw(seed, 3.0)
    np.testing.assert_array_equal(fake_quantize(-x), -fake_quantize(x))
