"""The Triton kernels of nvfp4_expand, block_stats and norm_rope, in the interpreter."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention.quantize import quantize_qkv
from pallas_kernels.block_stats import cache
from pallas_kernels.block_stats import reference as stats_reference
from pallas_kernels.block_stats import triton as stats_triton
from pallas_kernels.norm_rope import Heads
from pallas_kernels.norm_rope import triton as rope_triton
from pallas_kernels.nvfp4_expand import reference as expand_reference
from pallas_kernels.nvfp4_expand import triton as expand_triton
from pallas_kernels.triton_backend.rows import RowShape
from tests.pallas_kernels.conftest import bfloat16_steps
from tests.pallas_kernels.test_block_stats import streams
from tests.pallas_kernels.test_norm_rope import SHAPES, heads_of
from tests.pallas_kernels.test_nvfp4_expand import stored
from tests.pallas_kernels.triton_interpreter import interpreted

SMALL = RowShape(1024, 32, 1)


def expand(arrays, **options):
    with interpreted():
        return expand_triton.nvfp4_expand(*arrays, shape=SMALL, **options)


def same_bits(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(
        np.atleast_1d(found).view(np.uint8), np.atleast_1d(expected).view(np.uint8)
    )


@pytest.mark.parametrize("k", [64, 304, 1920])
@pytest.mark.parametrize("lead", [(), (2,)])
def test_expanded_weights_equal_the_definition_bit_by_bit(k, lead):
    arrays = stored(19, k, lead=lead)
    same_bits(
        expand(arrays, to="bfloat16"),
        expand_reference.nvfp4_expand(*arrays, to="bfloat16"),
    )
    found = expand(arrays, to="int8")
    for a, b in zip(
        found, expand_reference.nvfp4_expand(*arrays, to="int8"), strict=True
    ):
        same_bits(a, b)


def test_expanded_weights_with_given_scales_saturate_like_the_definition():
    arrays = stored(19, 304)
    scales = jnp.linspace(1e-4, 1e-2, 19)
    found = expand(arrays, to="int8", scales=scales)
    expected = expand_reference.nvfp4_expand(*arrays, to="int8", scales=scales)
    for a, b in zip(found, expected, strict=True):
        same_bits(a, b)


def test_expanded_row_with_a_nan_block_is_zero_with_a_nan_scale():
    codes, scales, tensor = stored(19, 304)
    values, rows = expand((codes, scales.at[3, 2].set(jnp.nan), tensor), to="int8")
    assert np.isnan(rows[3])
    assert np.isnan(np.asarray(rows)).sum() == 1
    assert not np.asarray(values[3]).any()


@pytest.mark.parametrize("old_format", [None, *cache.CACHE_FORMATS])
@pytest.mark.parametrize("cache_format", cache.CACHE_FORMATS)
def test_block_stats_equal_the_definition(cache_format, old_format):
    x, y, old = streams(2, 7, 304)
    before = None if old_format is None else cache.encode(old, old_format)
    with interpreted():
        found = stats_triton.block_stats(
            x, y, before, cache_format=cache_format, shape=SMALL
        )
    expected = stats_reference.block_stats(x, y, before, cache_format=cache_format)
    np.testing.assert_allclose(found.gamma, expected.gamma, rtol=1e-5)
    np.testing.assert_allclose(found.delta_change, expected.delta_change, rtol=1e-5)
    for a, b in zip(found.delta, expected.delta, strict=True):
        if b is None:
            assert a is None
        else:
            same_bits(a, b)


@pytest.mark.parametrize("cache_format", cache.CACHE_FORMATS)
def test_a_nan_delta_stays_in_its_row(cache_format):
    x, y, _ = streams(7, 304)
    y = y.at[2, 5].set(jnp.nan)
    with interpreted():
        found = stats_triton.block_stats(
            x, y, None, cache_format=cache_format, shape=SMALL
        )
    bad = np.isnan(np.asarray(cache.decode(found.delta), np.float32))
    assert bad[2].any()
    assert not np.delete(bad, 2, 0).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["layer", "rms", "head_rms"])
def test_norm_and_rotary_are_the_definition(kind, shape):
    heads = heads_of(shape, kind=kind)
    with interpreted():
        found = rope_triton.norm_rope(heads, tile=rope_triton.Tile(2048, 3, 4))
    expected = heads.values().astype(jnp.bfloat16)
    assert found.dtype == jnp.bfloat16
    close = np.isclose(
        np.asarray(found, np.float32),
        np.asarray(expected, np.float32),
        rtol=2**-7,
        atol=1e-3,
    )
    assert close.all()


def test_values_without_anything_to_do_pass_through():
    x = heads_of(SHAPES[1]).x
    with interpreted():
        found = rope_triton.norm_rope(Heads(x), tile=rope_triton.Tile(2048, 3, 4))
    assert bfloat16_steps(found, x) == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_quantized_heads_are_those_of_the_definition(kind, shape):
    q, k = heads_of(shape, kind=kind), heads_of(shape, kind=kind, seed=1)
    tokens = 32
    expected = quantize_qkv(q.values(), k.values(), k.x, scale=0.3, scale_tokens=tokens)
    mean = jnp.mean(k.values(), axis=1, keepdims=True)
    tile = rope_triton.Tile(2048, 3, 4)
    with interpreted():
        queries = rope_triton.quantized_queries(q, 0.3, tile=tile)
        keys = rope_triton.quantized_keys(k, mean, tokens, tile=tile)
    for found, wanted in (
        (queries, (expected.q_values, expected.q_scales)),
        (keys, (expected.k_values, expected.k_scales)),
    ):
        steps = np.abs(np.asarray(found[0], int) - np.asarray(wanted[0], int))
        assert steps.max() <= 1
        assert steps.mean() < 0.01
        np.testing.assert_allclose(found[1], wanted[1], rtol=1e-4)
