"""NVFP4 product: exact products, the epilogue, and lowering for both vendors' paths."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.gemm.config import Tile
from pallas_kernels.gemm.epilogue import EpilogueOperands
from pallas_kernels.gemm.linear import linear
from pallas_kernels.numerics import nvfp4
from pallas_kernels.nvfp4_matmul import nvfp4_matmul
from tests.pallas_kernels.conftest import bfloat16_steps


def operands(m, k, n, *, lead=(), seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(*lead, m, k)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(n, k)) * 0.02, jnp.float32)
    return (*nvfp4.quantize(x), *nvfp4.quantize(w))


def test_reference_is_the_product_of_the_dequantized_operands():
    array = operands(9, 64, 16)
    x = np.asarray(nvfp4.dequantize(*array[:3], jnp.float32), np.float64)
    w = np.asarray(nvfp4.dequantize(*array[3:], jnp.float32), np.float64)
    found = nvfp4_matmul(*array, out_dtype=jnp.float32)
    np.testing.assert_allclose(found, x @ w.T, rtol=1e-5, atol=1e-6)


def test_unscaled_operands_are_exact_in_bfloat16():
    codes = jnp.arange(16, dtype=jnp.uint8)
    every = jnp.tile(codes[::2] | (codes[1::2] << 4), (128, 1))
    scale_bits = np.arange(128, dtype=np.uint8)[:, None]
    scales = jax.lax.bitcast_convert_type(jnp.asarray(scale_bits), jnp.float8_e4m3fn)
    exact = np.asarray(nvfp4.dequantize(every, scales, jnp.float32(1.0)))
    rounded = exact.astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(exact, rounded)


def test_batch_entries_keep_their_own_tensor_scales():
    array = operands(4, 32, 8, lead=(2,))
    array = (*array[:2], jnp.asarray([1.0, 3.0]), *array[3:])
    both = nvfp4_matmul(*array, out_dtype=jnp.float32)
    for i in range(2):
        one = nvfp4_matmul(
            *(a[i] for a in array[:3]), *array[3:], out_dtype=jnp.float32
        )
        np.testing.assert_allclose(both[i], one, rtol=1e-6)


def test_bfloat16_kernel_with_scalar_scale_in_the_interpreter():
    m, k, n = 75, 128, 64
    array = operands(m, k, n)
    one = jnp.ones(())
    rng = np.random.default_rng(3)
    extra = {
        "bias": jnp.asarray(rng.normal(size=n), jnp.float32),
        "residual": jnp.asarray(rng.normal(size=(m, n)), jnp.bfloat16),
        "gate": jnp.asarray(rng.normal(size=n), jnp.float32),
    }
    found = linear(
        nvfp4.dequantize(*array[:2], one, jnp.bfloat16),
        nvfp4.dequantize(*array[3:5], one, jnp.bfloat16),
        row_scale=None,
        column_scale=None,
        scalar_scale=array[2] * array[5],
        operands=EpilogueOperands(**extra),
        out_dtype=jnp.bfloat16,
        interpret=True,
        tile=Tile(rows=64, columns=64, depth=64, stages=2, store=32, split="alternate"),
    )
    expected = nvfp4_matmul(*array, **extra, implementation="reference")
    assert bfloat16_steps(found, expected) <= 1


@pytest.mark.parametrize("lead", [(), (2,)])
def test_hopper_path_lowers_for_cuda(lead, lower_for_cuda):
    text = lower_for_cuda(
        lambda *a: nvfp4_matmul(
            *a, activation="gelu_tanh", implementation="mosaic_gpu"
        ),
        *operands(136, 256, 192, lead=lead),
    )
    assert "nvfp4_expand_bfloat16" in text
    assert "gemm" in text


def test_blackwell_path_lowers_to_a_block_scaled_dot(lower_for_cuda):
    text = lower_for_cuda(
        lambda *a: nvfp4_matmul(*a, implementation="scaled_matmul"),
        *operands(128, 256, 128),
    )
    assert "block_scaled_dot" in text or "scaled_matmul" in text


def test_refuses_an_odd_depth_with_the_reason():
    with pytest.raises(NotImplementedError, match=r"K must be .* found 48"):
        nvfp4_matmul(*operands(8, 48, 16), implementation="mosaic_gpu")
    with pytest.raises(NotImplementedError, match="multiple of 64, found 48"):
        nvfp4_matmul(*operands(8, 48, 16), implementation="scaled_matmul")


def test_mismatched_shapes_name_both():
    array = operands(8, 64, 16)
    with pytest.raises(ValueError, match=r"w_block_scales.*\(16, 4\).*\(15, 4\)"):
        nvfp4_matmul(*array[:4], array[4][:15], array[5])


def test_triton_without_its_packages_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_triton", None)
    with pytest.raises(NotImplementedError, match=r"sixbit-jax\[triton\]"):
        nvfp4_matmul(*operands(8, 48, 64), implementation="triton")
