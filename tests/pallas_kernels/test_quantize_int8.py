"""quantize_int8: the definition, the kernel's threads in NumPy, its lowering."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks.kernels.elementwise import random_site
from pallas_kernels.numerics import int8
from pallas_kernels.numerics.hadamard import block_hadamard
from pallas_kernels.quantize_int8 import mosaic_gpu, quantize_int8, reference
from pallas_kernels.row_tiles import choose_tiling, front
from pallas_kernels.row_tiles.shapes import CHANNELS
from pallas_kernels.row_tiles.site import SiteInput
from tests.pallas_kernels.lane_emulator import Float, emulated


def normal(*shape, seed=0, dtype=jnp.bfloat16):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def compiled(site):
    def run(x):
        return reference.quantize_int8(dataclasses.replace(site, x=x), with_stats=True)

    return jax.jit(run)(site.x)


def test_reference_of_a_plain_input_is_the_rotated_int8_definition():
    x = normal(2, 7, 256)
    values, scales, outlier = jax.jit(quantize_int8)(x)
    expected = jax.jit(int8.quantize)(block_hadamard(x.astype(jnp.float32)))
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(scales, expected[1])
    assert outlier is None


def test_reference_normalises_modulates_and_tells_text_from_video_rows():
    site = random_site(0, (2, 6, 128), "norm")
    site = dataclasses.replace(site, text_rows=2)
    x = np.asarray(site.x, np.float64)
    y = x - x.mean(-1, keepdims=True)
    y /= np.sqrt((y**2).mean(-1, keepdims=True) + site.eps)
    y = y * np.asarray(site.norm_weight) + np.asarray(site.norm_bias)
    for rows, shift, scale in (
        (slice(0, 2), site.text_shift, site.text_scale),
        (slice(2, 6), site.shift, site.scale),
    ):
        scale, shift = (np.asarray(z, np.float64)[:, None] for z in (scale, shift))
        y[:, rows] = y[:, rows] * (1 + scale) + shift
    np.testing.assert_allclose(site.activation_values(), y, rtol=2e-4, atol=2e-4)
    outlier = compiled(site)[2]
    np.testing.assert_allclose(outlier, np.abs(y).max() / np.abs(y).mean(), rtol=1e-4)


def test_rotation_spreads_one_outlier_over_its_block():
    x = jnp.zeros((1, 256), jnp.bfloat16).at[0, 3].set(64.0)
    values, scales, _ = jax.jit(quantize_int8)(x)
    back = np.asarray(int8.dequantize(values, scales))
    np.testing.assert_allclose(np.abs(back[0, :128]), 64 * 128**-0.5, rtol=1e-3)
    assert not back[0, 128:].any()
    np.testing.assert_array_equal(quantize_int8(x, rotation=0)[0][0, 3], 127)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((2, 21, 256), "norm"),
        ((19, 384), "norm"),
        ((5, 1920), "gelu"),
        ((1, 128), "plain"),
        ((11, 3072), "plain"),
        ((3, 14336), "plain"),
    ],
)
def test_kernel_threads_agree_with_the_reference(monkeypatch, shape, kind):
    site = random_site(0, shape, kind)
    with emulated(monkeypatch, mosaic_gpu):
        values, scales, outlier = mosaic_gpu.quantize_int8(site, with_stats=True)
    expected = compiled(site)
    difference = np.abs(np.asarray(values, int) - np.asarray(expected[0], int))
    # 16 bits enter the kernel's rotation: float16 behind a norm, else bfloat16.
    allowed, tolerance = {
        "plain": (1e-4, 1e-6),
        "norm": (0.025, 1e-3),
        "gelu": (0.04, 2e-3),
    }[kind]
    assert difference.max() <= 1
    assert (difference > 0).mean() <= allowed
    np.testing.assert_allclose(scales, expected[1], rtol=tolerance)
    np.testing.assert_allclose(outlier, expected[2], rtol=tolerance)


def test_gelu_of_two_values_is_that_of_each(monkeypatch):
    values = np.concatenate(
        [np.linspace(-12, 12, 97), [-1e10, -1e4, 1e4, 3e38]]
    ).astype(np.float32)
    x, y = (v.reshape(-1) for v in np.meshgrid(values, values))
    with emulated(monkeypatch, mosaic_gpu):
        found = front.gelu(Float(x), Float(y))
        not_finite = front.gelu(Float([np.nan, np.inf, -np.inf]), Float([1.0] * 3))
    for part, argument in zip(found, (x, y), strict=True):
        wide = argument.astype(np.float64)
        with np.errstate(over="ignore"):
            inner = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
        expected = 0.5 * wide * (1 + np.tanh(inner))
        np.testing.assert_allclose(part.value, expected, rtol=2e-5, atol=1e-6)
    assert not np.isfinite(not_finite[0].value).any()


@pytest.mark.parametrize("norm", [None, "layer"])
@pytest.mark.parametrize("implementation", ["reference", "mosaic_gpu"])
def test_nan_and_inf_stay_in_their_rows(monkeypatch, norm, implementation):
    x = normal(12, 256)
    bad = x.at[3, 7].set(jnp.nan).at[10, 200].set(-jnp.inf)
    rows = np.setdiff1d(np.arange(12), [3, 10])
    with emulated(monkeypatch, mosaic_gpu):
        clean, dirty = (
            quantize_int8(z, norm=norm, implementation=implementation) for z in (x, bad)
        )
    for part in range(2):
        np.testing.assert_array_equal(
            np.asarray(clean[part])[rows], np.asarray(dirty[part])[rows]
        )
    np.testing.assert_array_equal(np.isnan(dirty[1]).nonzero()[0], [3, 10])
    assert not np.asarray(dirty[0])[[3, 10]].any()


@pytest.mark.parametrize("k", CHANNELS)
def test_tiling_of_every_model_fills_its_warps_and_shared_memory(k):
    tiling = choose_tiling(k)
    assert tiling.rows * tiling.blocks / (16 * tiling.warps) >= 0.7
    assert tiling.warps <= 12
    assert tiling.buffers * tiling.rows * k * 2 <= 227 * 1024


@pytest.mark.parametrize(("m", "k"), [(17_776, 3072), (45_106, 1920), (3, 13_824)])
def test_kernel_lowers_for_cuda(m, k):
    site = random_site(0, (1, 4, k), "norm")

    def run(x):
        moved = dataclasses.replace(site, x=x, text_rows=min(2, m))
        return mosaic_gpu.quantize_int8(moved, with_stats=True)

    x = jax.ShapeDtypeStruct((1, m, k), jnp.bfloat16)
    text = jax.jit(run).trace(x).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text


def test_kernel_lowers_inside_scan_and_switch():
    def step(x, branch):
        def quantized(x):
            values, scales, _ = quantize_int8(x, implementation="mosaic_gpu")
            return int8.dequantize(values, scales, jnp.bfloat16)

        return lax.switch(branch, [quantized, lambda x: x], x), None

    def run(x, branches):
        return lax.scan(step, x, branches)[0]

    arguments = (
        jax.ShapeDtypeStruct((1000, 256), jnp.bfloat16),
        jax.ShapeDtypeStruct((4,), jnp.int32),
    )
    text = jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (normal(4, 192), "multiple of 128"),
        (normal(4, 128 * 200), "12 warps"),
        (normal(4, 128, dtype=jnp.float32), "bfloat16"),
        (normal(0, 128), "no rows"),
    ],
)
def test_kernel_refuses_with_the_reason_what_it_cannot_do(x, reason):
    rotation = 128 if x.shape[-1] % 128 == 0 else 0
    with pytest.raises(NotImplementedError, match=reason):
        quantize_int8(x, rotation=rotation, implementation="mosaic_gpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "rms"}, "norm must be"),
        ({"activation": "relu"}, "activation must be"),
        ({"rotation": 64}, "rotation must be 0 or 128"),
        ({"scale": jnp.ones((3, 128))}, r"scale must have shape \(128,\)"),
        ({"text_rows": 9}, "text_rows must be between 0 and 4"),
        ({"norm_weight": jnp.ones(128)}, "need norm='layer'"),
    ],
)
def test_contradictory_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SiteInput(normal(4, 128), **options)
