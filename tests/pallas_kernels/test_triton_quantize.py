"""The Triton kernels that quantize activations, in the interpreter."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.kernels.elementwise import random_site
from pallas_kernels.numerics import int8, nvfp4
from pallas_kernels.quantize_int8 import reference as int8_reference
from pallas_kernels.quantize_int8 import triton as int8_triton
from pallas_kernels.quantize_nvfp4 import reference as nvfp4_reference
from pallas_kernels.quantize_nvfp4 import triton as nvfp4_triton
from pallas_kernels.row_tiles.site import SiteInput
from pallas_kernels.triton_backend.rows import RowShape
from tests.pallas_kernels.triton_interpreter import interpreted

# Tiles of a few rows, more tiles than one.
SMALL = RowShape(2048, 32, 1)
KINDS = ("plain", "gelu", "norm")


def site_of(kind, shape=(2, 19, 384), **changes):
    return dataclasses.replace(random_site(3, shape, kind), **changes)


def run_int8(site, with_stats=False):
    with interpreted():
        return int8_triton.quantize_int8(site, with_stats=with_stats, shape=SMALL)


def run_nvfp4(site, tensor_scale=None, with_stats=False):
    with interpreted():
        return nvfp4_triton.quantize_nvfp4(
            site, tensor_scale, with_stats=with_stats, shape=SMALL
        )


def bits(x):
    return np.atleast_1d(np.asarray(x)).view(np.uint8)


def relative(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("rotation", [0, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_int8_kernel_is_the_definition_within_one_level(kind, rotation):
    site = site_of(kind, rotation=rotation)
    values, scales, outlier = run_int8(site, with_stats=True)
    expected = int8_reference.quantize_int8(site, with_stats=True)
    assert values.shape == expected[0].shape
    assert scales.shape == expected[1].shape
    steps = np.abs(np.asarray(values, int) - np.asarray(expected[0], int))
    assert steps.max() <= 1
    assert steps.mean() < 0.05
    np.testing.assert_allclose(scales, expected[1], rtol=4e-3)
    np.testing.assert_allclose(outlier, expected[2], rtol=4e-3)
    pairs = (int8.dequantize(values, scales), int8.dequantize(*expected[:2]))
    # Behind GELU values have the eight bits of bfloat16.
    assert relative(*pairs) < (1e-2 if kind == "gelu" else 4e-3)


def test_int8_of_a_plain_input_is_the_definition_bit_by_bit():
    site = site_of("plain", rotation=0)
    values, scales, _ = run_int8(site)
    expected = int8_reference.quantize_int8(site, with_stats=False)
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(scales, expected[1])


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_int8_row_with_a_bad_number_is_zero_with_a_nan_scale(kind, bad):
    site = site_of(kind, shape=(19, 256))
    x = site.x.at[4, 7].set(bad)
    values, scales, _ = run_int8(dataclasses.replace(site, x=x))
    clean = run_int8(site)
    assert np.isnan(scales[4])
    assert not np.asarray(values[4]).any()
    for found, expected in zip((values, scales), clean[:2], strict=True):
        np.testing.assert_array_equal(
            np.delete(np.asarray(found), 4, 0), np.delete(np.asarray(expected), 4, 0)
        )


@pytest.mark.parametrize("scale", [None, 2e-3])
@pytest.mark.parametrize("rotation", [0, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_nvfp4_kernel_is_near_the_definition(kind, rotation, scale):
    site = site_of(kind, rotation=rotation)
    given = None if scale is None else jnp.float32(scale)
    found = run_nvfp4(site, given, with_stats=True)
    expected = nvfp4_reference.quantize_nvfp4(site, given, with_stats=True)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
    np.testing.assert_allclose(found[2], expected[2], rtol=4e-3)
    np.testing.assert_allclose(found[3], expected[3], rtol=4e-3)
    a, b = (
        nvfp4.dequantize(codes, scales, jnp.broadcast_to(tensor, codes.shape[:-2]))
        for codes, scales, tensor, _ in (found, expected)
    )
    # Values between two codes may go either way.
    assert relative(a, b) < 0.03


@pytest.mark.parametrize("scale", [None, 2e-3])
def test_nvfp4_of_a_plain_input_is_the_definition_bit_by_bit(scale):
    site = site_of("plain", rotation=0)
    given = None if scale is None else jnp.float32(scale)
    found = run_nvfp4(site, given)
    expected = nvfp4_reference.quantize_nvfp4(site, given, with_stats=False)
    for a, b in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(bits(a), bits(b))


def test_nvfp4_block_with_a_bad_number_has_a_nan_scale():
    site = site_of("plain", shape=(19, 256), rotation=0)
    x = site.x.at[4, 7].set(jnp.nan).at[5, 40].set(-jnp.inf)
    site = dataclasses.replace(site, x=x)
    found = run_nvfp4(site)
    expected = nvfp4_reference.quantize_nvfp4(site, None, with_stats=False)
    np.testing.assert_array_equal(bits(found[1]), bits(expected[1]))
    np.testing.assert_array_equal(found[2], expected[2])
    bad = np.isnan(np.asarray(found[1], np.float32))
    assert bad.sum() == 2
    codes = (np.asarray(x[0]).reshape(19, 16, 8) for x in (found, expected))
    ours, theirs = (np.where(bad[..., None], 0, x) for x in codes)
    np.testing.assert_array_equal(ours, theirs)


def test_refuses_what_it_cannot_do_with_the_reason():
    wide = SiteInput(jnp.zeros((2, 32768), jnp.bfloat16))
    with pytest.raises(NotImplementedError, match=r"at most 16384.*\[2, 32768\]"):
        int8_triton.quantize_int8(wide, with_stats=False)
    odd = SiteInput(jnp.zeros((2, 192), jnp.bfloat16))
    with pytest.raises(NotImplementedError, match="multiples of 128 channels"):
        int8_triton.quantize_int8(odd, with_stats=False)
