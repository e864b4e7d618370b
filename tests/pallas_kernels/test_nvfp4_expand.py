"""Expansion of stored NVFP4: the definition, and lowering of the kernel."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.numerics import int8, nvfp4
from pallas_kernels.nvfp4_expand import nvfp4_expand


def stored(n, k, *, lead=(), seed=0):
    rng = np.random.default_rng(seed)
    values = jnp.asarray(rng.normal(size=(*lead, n, k)), jnp.float32)
    return nvfp4.quantize(values)


def test_bfloat16_is_the_dequantized_value_rounded_once():
    array = stored(8, 64)
    exact = np.asarray(nvfp4.dequantize(*array, jnp.float32))
    found = nvfp4_expand(*array, to="bfloat16")
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_int8_uses_the_whole_range_of_every_row():
    values, scales = nvfp4_expand(*stored(8, 64))
    assert values.dtype == jnp.int8
    np.testing.assert_array_equal(np.abs(np.asarray(values, np.int32)).max(1), 127)
    exact = np.asarray(nvfp4.dequantize(*stored(8, 64), jnp.float32))
    error = np.abs(np.asarray(values) * np.asarray(scales)[:, None] - exact)
    assert (error <= 0.5001 * np.asarray(scales)[:, None]).all()


def test_given_scales_are_used_and_saturate():
    array = stored(4, 32)
    _, scales = nvfp4_expand(*array)
    values, kept = nvfp4_expand(*array, scales=scales * 0.5)
    np.testing.assert_array_equal(kept, scales * 0.5)
    exact = np.asarray(nvfp4.dequantize(*array, jnp.float32), np.float64)
    wanted = np.rint(exact / np.asarray(scales * 0.5, np.float64)[:, None])
    assert (np.abs(wanted) > 127).any()
    np.testing.assert_allclose(values, np.clip(wanted, -127, 127), atol=1)


def test_a_nan_block_stays_in_its_row():
    codes, block_scales, tensor_scale = stored(4, 32)
    block_scales = block_scales.at[1, 0].set(jnp.nan)
    values, scales = nvfp4_expand(codes, block_scales, tensor_scale)
    assert np.isnan(np.asarray(scales)).tolist() == [False, True, False, False]
    assert not np.asarray(values)[1].any()


def test_stacked_layers_keep_their_own_tensor_scales():
    codes, block_scales, tensor_scale = stored(4, 32, lead=(3,))
    values, scales = nvfp4_expand(codes, block_scales, tensor_scale * 2.0)
    exact = nvfp4.dequantize(codes, block_scales, tensor_scale * 2.0)
    expected = int8.quantize(exact)
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(scales, expected[1])


@pytest.mark.parametrize("to", ["int8", "bfloat16"])
@pytest.mark.parametrize("k", [1920, 13824, 48])
def test_lowers_for_cuda(to, k, lower_for_cuda):
    array = stored(6, k)
    text = lower_for_cuda(
        lambda *a: nvfp4_expand(*a, to=to, implementation="mosaic_gpu"), *array
    )
    assert f"nvfp4_expand_{to}" in text


def test_given_scales_lower_for_cuda(lower_for_cuda):
    text = lower_for_cuda(
        lambda c, b, t, s: nvfp4_expand(c, b, t, scales=s, implementation="mosaic_gpu"),
        *stored(6, 256),
        jnp.ones(6),
    )
    assert "nvfp4_expand_int8" in text


def test_refuses_rows_that_do_not_fit_registers():
    with pytest.raises(NotImplementedError, match="up to 32768, found 32784"):
        nvfp4_expand(*stored(1, 32784), implementation="mosaic_gpu")


def test_mismatched_scales_name_both_shapes():
    codes, block_scales, tensor_scale = stored(4, 32)
    with pytest.raises(ValueError, match=r"\(4, 2\).*\(3, 2\)"):
        nvfp4_expand(codes, block_scales[:3], tensor_scale)
    with pytest.raises(ValueError, match="scales only with 'int8'"):
        nvfp4_expand(
            codes, block_scales, tensor_scale, to="bfloat16", scales=jnp.ones(4)
        )
