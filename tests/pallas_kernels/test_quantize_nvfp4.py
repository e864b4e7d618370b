"""quantize_nvfp4: the definition, the kernel's threads in NumPy, its lowering."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.kernels.elementwise import random_site
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


def codes_of(monkeypatch, values: np.ndarray, inverse: float) -> np.ndarray:
    """Codes that a kernel's thread gives values times `inverse`."""
    padded = np.concatenate([values, np.zeros(-values.size % 8, np.float32)])
    with emulated(monkeypatch, mosaic_gpu):
        eights = [Float(padded[i::8]) for i in range(8)]
        scale = Float(encode.CODE_SCALE * inverse)
        words = encode.code_word(eights, scale).value
    found = np.stack([words >> (4 * i) & 15 for i in range(8)], -1).reshape(-1)
    return found[: values.size]


def with_both_signs(magnitudes: np.ndarray) -> np.ndarray:
    return np.concatenate([magnitudes, -magnitudes]).astype(np.float32)


def on_a_boundary(values: np.ndarray) -> np.ndarray:
    return np.isin(np.abs(values), [boundary for boundary, *_ in e2m1.BOUNDARIES])


def test_every_float16_gets_the_nearest_code(monkeypatch):
    values = np.arange(65_536, dtype=np.uint16).view(np.float16).astype(np.float32)
    values = values[np.abs(values) < encode.MOST_STEPS]
    found = codes_of(monkeypatch, values, 1.0)
    expected = np.asarray(e2m1.encode(values))
    tie = on_a_boundary(values)
    np.testing.assert_array_equal(found[~tie], expected[~tie])
    # Half-way between two codes the one further from zero is as near as the even one.
    away = np.nextafter(np.abs(values), np.float32(8)) * np.sign(values)
    np.testing.assert_array_equal(found[tie], np.asarray(e2m1.encode(away))[tie])
    assert tie.sum() == 2 * len(e2m1.BOUNDARIES)


def test_codes_change_at_the_boundaries_to_the_last_bit(monkeypatch):
    grid = np.arange(0, 7, 2.0**-7, dtype=np.float32)  # every boundary
    sides = [np.nextafter(grid, np.float32(x)) for x in (-np.inf, np.inf)]
    values = with_both_signs(np.concatenate([grid, *sides]))
    found = codes_of(monkeypatch, values, 1.0)
    kept = ~on_a_boundary(values)
    expected = np.asarray(e2m1.encode(values))
    np.testing.assert_array_equal(found[kept], expected[kept])


@pytest.mark.parametrize("step", [0.37, 3e-30, 5e25])
def test_codes_are_nearest_but_for_the_rounding_of_one_product(monkeypatch, step):
    magnitudes = np.random.default_rng(0).uniform(0, 6.99, 40_000)
    near = [b * (1 + 2.0**-19 * n) for b, *_ in e2m1.BOUNDARIES for n in range(-64, 64)]
    values = with_both_signs(np.concatenate([magnitudes, near]) * step)
    found = codes_of(monkeypatch, values, 1.0 / step)
    quotient = np.abs(values.astype(np.float64)) / float(np.float32(step))
    low, high = (
        np.asarray(e2m1.encode((quotient * (1 + side)).astype(np.float32)))
        for side in (-(2.0**-22), 2.0**-22)
    )
    magnitude = found & 7
    assert np.all((low <= magnitude) & (magnitude <= high))
    np.testing.assert_array_equal(found >> 3, np.signbit(values))
    assert (low == high).mean() > 0.99


def test_codes_decode_as_the_definition_says(monkeypatch):
    generator = np.random.default_rng(0)
    words = generator.integers(0, 2**32, (8, 128), np.uint32)
    words[0, :16] = np.arange(16) * 0x11111111  # every code in every place
    scales = np.random.default_rng(1).integers(0, 127, (128, 4)).astype(np.uint8)
    others = generator.normal(size=(64, 128)).astype(np.float32)
    codes = np.ascontiguousarray(words.T).view(np.uint8)
    expected = np.asarray(
        nvfp4.dequantize(
            jnp.asarray(codes),
            jnp.asarray(scales).view(jnp.float8_e4m3fn),
            jnp.float32(0.75),
        )
    )
    with emulated(monkeypatch, mosaic_gpu):
        blocks = encode.decode_nvfp4(
            [lane_emulator.Int(word) for word in words],
            lane_emulator.Int(scales.view(np.uint32)[:, 0]),
            Float(0.75),
        )
        for i, block in enumerate(blocks):
            here = slice(16 * i, 16 * (i + 1))
            values = expected[:, here]
            zeros = block.subtracted_from([Float(np.zeros(128))] * 16)
            found = np.stack([-v.value for v in zeros], -1)
            np.testing.assert_array_equal(found, values)
            rest = block.subtracted_from([Float(v) for v in others[here]])
            found = np.stack([v.value for v in rest], -1)
            np.testing.assert_array_equal(found, others[here].T - values)
            total = np.abs(values.astype(np.float64)).sum(-1)
            np.testing.assert_allclose(block.magnitudes().value, total, rtol=2.0**-23)


@pytest.mark.parametrize("tensor_scale", [1e-4, 3.0])
def test_values_beyond_a_given_scale_saturate(monkeypatch, tensor_scale):
    """Also where block scales are subnormal, of which three are far too small."""
    x = normal(5, 256) * jnp.float32(2.0) ** -jnp.arange(256)
    x = x.at[1, 3].set(jnp.nan).at[2, 70].set(-jnp.inf).astype(jnp.bfloat16)
    options = {"rotation": 0, "tensor_scale": jnp.float32(tensor_scale)}
    with emulated(monkeypatch, mosaic_gpu):
        found = quantize_nvfp4(x, **options, implementation="mosaic_gpu")
    expected = jax.jit(functools.partial(quantize_nvfp4, **options))(x)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(scale_bits(found[1]), scale_bits(expected[1]))


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
