"""quantize_nvfp4: the definition, the kernel's threads in NumPy, its lowering."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.kernel_ops_elementwise import random_site
from pallas_kernels.numerics import e2m1, nvfp4
from pallas_kernels.numerics.hadamard import block_hadamard
from pallas_kernels.quantize_nvfp4 import mosaic_gpu, quantize_nvfp4, reference
from pallas_kernels.row_tiles import encode
from tests.pallas_kernels import lane_emulator
from tests.pallas_kernels.lane_emulator import Float, emulated


def normal(*shape, seed=0, dtype=jnp.bfloat16):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def compiled(module, site, tensor_scale):
    def run(x):
        moved = dataclasses.replace(site, x=x)
        return module.quantize_nvfp4(moved, tensor_scale, with_stats=True)

    return jax.jit(run)(site.x)


def scale_bits(scales):
    return np.asarray(scales).view(np.uint8)


def test_reference_is_one_tensor_scale_over_all_leading_axes():
    x = normal(2, 5, 256)
    codes, scales, tensor_scale, outlier = jax.jit(quantize_nvfp4)(x)
    rotated = block_hadamard(x.astype(jnp.float32)).reshape(10, 256)
    expected = jax.jit(nvfp4.quantize)(rotated)
    np.testing.assert_array_equal(codes.reshape(10, 128), expected[0])
    np.testing.assert_array_equal(
        scale_bits(scales).reshape(10, 16), scale_bits(expected[1])
    )
    np.testing.assert_array_equal(tensor_scale, expected[2])
    assert codes.shape == (2, 5, 128)
    assert scales.shape == (2, 5, 16)
    assert outlier is None


def test_given_tensor_scale_is_used_as_it_is():
    x = normal(3, 128)
    found = jax.jit(functools.partial(quantize_nvfp4, tensor_scale=0.25))(x)
    np.testing.assert_array_equal(found[2], 0.25)
    back = nvfp4.dequantize(*found[:3])
    rotated = block_hadamard(x.astype(jnp.float32))
    assert float(jnp.max(jnp.abs(back - rotated))) < 0.5


def test_polygon_of_the_kernel_is_the_e2m1_code(monkeypatch):
    grid = np.arange(0, 8, 2.0**-7, dtype=np.float32)  # every boundary and its sides
    sides = [np.nextafter(grid, np.float32(x)) for x in (-np.inf, np.inf)]
    values = np.concatenate([grid, *sides])
    values = np.concatenate([values, -values, np.zeros(-2 * values.size % 8)])
    values = values.astype(np.float32)
    with emulated(monkeypatch, mosaic_gpu):
        eights = [Float(values[i::8]) for i in range(8)]
        words = encode.code_word(eights, Float(0.5)).value
    found = np.stack([words >> (4 * i) & 15 for i in range(8)], -1).reshape(-1)
    np.testing.assert_array_equal(found, e2m1.encode(values))


def test_codes_decode_as_the_definition_says(monkeypatch):
    words = np.random.default_rng(0).integers(0, 2**32, (8, 128), np.uint32)
    scales = np.random.default_rng(1).integers(0, 127, (128, 4)).astype(np.uint8)
    with emulated(monkeypatch, mosaic_gpu):
        found = encode.decode_nvfp4(
            [lane_emulator.Int(word) for word in words],
            lane_emulator.Int(scales.view(np.uint32)[:, 0]),
            Float(0.75),
        )
    codes = np.ascontiguousarray(words.T).view(np.uint8)
    expected = nvfp4.dequantize(
        jnp.asarray(codes),
        jnp.asarray(scales).view(jnp.float8_e4m3fn),
        jnp.float32(0.75),
    )
    np.testing.assert_array_equal(np.stack([v.value for v in found], -1), expected)


@pytest.mark.parametrize("tensor_scale", [None, 2e-3])
@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((2, 21, 256), "norm"),
        ((5, 1920), "gelu"),
        ((9, 384), "plain"),
        ((3, 13_824), "plain"),
    ],
)
def test_kernel_threads_agree_with_the_reference(
    monkeypatch, shape, kind, tensor_scale
):
    site = random_site(0, shape, kind)
    with emulated(monkeypatch, mosaic_gpu):
        found = mosaic_gpu.quantize_nvfp4(site, tensor_scale, with_stats=True)
    expected = compiled(reference, site, tensor_scale)
    # 16 bits enter the kernel's rotation: float16 behind a norm, else bfloat16.
    allowed = {"plain": 1e-4, "norm": 0.02, "gelu": 0.04}[kind]
    assert (np.asarray(found[0]) != np.asarray(expected[0])).mean() <= allowed
    assert (scale_bits(found[1]) != scale_bits(expected[1])).mean() <= allowed
    for part in (2, 3):
        np.testing.assert_allclose(found[part], expected[part], rtol=1e-3)


def test_without_rotation_the_kernel_threads_give_the_same_bits(monkeypatch):
    x = normal(33, 384)
    site_options = {"rotation": 0, "tensor_scale": jnp.float32(1.7e-3)}
    with emulated(monkeypatch, mosaic_gpu):
        found = quantize_nvfp4(x, **site_options, implementation="mosaic_gpu")
    expected = jax.jit(functools.partial(quantize_nvfp4, **site_options))(x)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(scale_bits(found[1]), scale_bits(expected[1]))


@pytest.mark.parametrize("implementation", ["reference", "mosaic_gpu"])
def test_nan_and_inf_stay_in_their_blocks_and_out_of_the_tensor_scale(
    monkeypatch, implementation
):
    x = normal(6, 256)
    bad = x.at[1, 20].set(jnp.nan).at[4, 255].set(jnp.inf)
    run = functools.partial(quantize_nvfp4, rotation=0, implementation=implementation)
    with emulated(monkeypatch, mosaic_gpu):
        run = jax.jit(run) if implementation == "reference" else run
        _, scales, tensor_scale, _ = run(bad)
    marked = np.isnan(np.asarray(scales, np.float32))
    assert set(map(tuple, np.argwhere(marked))) == {(1, 1), (4, 15)}
    assert np.isfinite(tensor_scale)


@pytest.mark.parametrize("tensor_scale", [None, 1e-3])
def test_kernel_lowers_for_cuda(tensor_scale):
    def run(x):
        return quantize_nvfp4(
            x, tensor_scale=tensor_scale, norm="layer", implementation="mosaic_gpu"
        )

    x = jax.ShapeDtypeStruct((17_776, 1920), jnp.bfloat16)
    text = jax.jit(run).trace(x).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("mosaic_gpu") >= (2 if tensor_scale is None else 1)
