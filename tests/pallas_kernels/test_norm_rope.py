"""norm_rope: the definition against NumPy, the kernel's threads, lowering."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention.quantize import quantize_qkv
from pallas_kernels.norm_rope import Heads, Rotary, mosaic_gpu, norm_rope, norm_rope_qkv
from pallas_kernels.norm_rope.heads import TABLE_OFFSET, TABLE_SCALE
from pallas_kernels.norm_rope.shapes import SHAPES as REAL_SHAPES
from tests.pallas_kernels.lane_emulator import emulated

# batch, tokens, text rows, heads, head_dim: whole tiles, an end, an idle warpgroup
SHAPES = [(1, 256, 26, 4, 64), (2, 141, 13, 6, 64), (2, 77, 0, 4, 128)]


def rotary(tokens, text, head_dim, seed=0):
    angles = np.random.default_rng(seed).uniform(-9, 9, (tokens - text, head_dim // 2))
    cos, sin = np.cos(angles), np.sin(angles)
    return Rotary(cos.astype(np.float32), sin.astype(np.float32), text)


def heads_of(shape, *, kind="layer", seed=0):
    batch, tokens, text, heads, head_dim = shape
    keys = jax.random.split(jax.random.key(seed), 4)
    x = jax.random.normal(keys[0], (batch, tokens, heads, head_dim)) * 3 + 1
    x = x.astype(jnp.bfloat16)
    table = rotary(tokens, text, head_dim)
    if kind == "layer":
        weight = 1 + 0.3 * jax.random.normal(keys[1], (head_dim,))
        bias = 0.3 * jax.random.normal(keys[2], (head_dim,))
        return Heads(x, norm="layer", weight=weight, bias=bias, rotary=table)
    if kind == "head_rms":
        weight = 1 + 0.3 * jax.random.normal(keys[1], (head_dim,))
        return Heads(x, norm="rms", weight=weight, rotary=table)
    factor = jax.random.uniform(keys[3], (batch, tokens)) + 0.1
    weight = 1 + 0.3 * jax.random.normal(keys[1], (heads, head_dim))
    return Heads(x, row_factor=factor, weight=weight, rotary=table)


def numpy_values(heads):
    """Float64, complex numbers: written down another way."""
    x = np.asarray(heads.x, np.float64)
    if heads.norm == "rms":
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + heads.eps)
    elif heads.norm:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
            x.var(-1, keepdims=True) + heads.eps
        )
    if heads.row_factor is not None:
        x = x * np.asarray(heads.row_factor, np.float64)[:, :, None, None]
    x = x * np.asarray(heads.weight, np.float64)
    if heads.bias is not None:
        x = x + np.asarray(heads.bias, np.float64)
    text = heads.rotary.text_rows
    turn = heads.rotary.cos + 1j * heads.rotary.sin
    video = (x[:, text:, :, 0::2] + 1j * x[:, text:, :, 1::2]) * turn[:, None, :]
    x[:, text:, :, 0::2], x[:, text:, :, 1::2] = video.real, video.imag
    return x


@pytest.mark.parametrize("kind", ["layer", "rms", "head_rms"])
def test_definition_is_norm_affine_and_complex_rotation(kind):
    heads = heads_of(SHAPES[1], kind=kind)
    np.testing.assert_allclose(heads.values(), numpy_values(heads), atol=3e-5)


def test_packed_table_keeps_cosines_within_its_step():
    table = rotary(40, 7, 64)
    packed = table.packed()
    found = [
        ((packed >> shift & 0xFFFF).astype(np.float64) - TABLE_OFFSET) / TABLE_SCALE
        for shift in (0, 16)
    ]
    for part, expected in zip(found, table.full(), strict=True):
        assert np.abs(part - expected).max() <= 0.51 / TABLE_SCALE


def test_every_keeps_tokens_with_their_angles():
    heads = heads_of(SHAPES[1], kind="rms")
    np.testing.assert_allclose(
        heads.every(7).values(), heads.values()[:, ::7], atol=1e-6
    )


@pytest.mark.parametrize("kind", ["layer", "rms", "head_rms", "plain"])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_threads_agree_with_the_definition(monkeypatch, shape, kind):
    heads = heads_of(shape, kind="layer" if kind == "plain" else kind)
    if kind == "plain":
        heads = dataclasses.replace(heads, norm=None, rotary=None, weight=None)
    with emulated(monkeypatch, mosaic_gpu):
        found = norm_rope(heads, implementation="mosaic_gpu")
    assert found.dtype == jnp.bfloat16
    expected = heads.values()
    # Half a step of bfloat16, and the step of the table.
    limit = np.abs(expected) * 2.0**-8 + 2e-3
    assert (np.abs(np.asarray(found, np.float32) - expected) <= limit).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_quantized_threads_agree_with_quantize_qkv(monkeypatch, shape):
    q, k = heads_of(shape, seed=1), heads_of(shape, seed=2)
    v = jax.random.normal(jax.random.key(3), q.x.shape, jnp.bfloat16)
    with emulated(monkeypatch, mosaic_gpu):
        found = norm_rope_qkv(q, k, v, implementation="mosaic_gpu")
    expected = norm_rope_qkv(q, k, v, implementation="reference")
    assert found.scale_tokens == expected.scale_tokens
    assert found.k_scales.shape == expected.k_scales.shape
    for name in ("q_scales", "k_scales"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=2e-4
        )
    for name in ("q_values", "k_values"):
        steps = np.abs(
            np.asarray(getattr(found, name), np.int32)
            - np.asarray(getattr(expected, name), np.int32)
        )
        assert steps.max() <= 1
        assert (steps != 0).mean() < 0.01


def test_reference_is_quantize_qkv_of_the_values():
    q, k = heads_of(SHAPES[1], seed=1), heads_of(SHAPES[1], seed=2)
    found = norm_rope_qkv(q, k, k.x, implementation="reference")
    expected = quantize_qkv(q.values(), k.values(), k.x)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, found, expected))


def test_a_nan_query_stays_in_its_token_and_head(monkeypatch):
    heads = heads_of(SHAPES[1])
    heads = dataclasses.replace(heads, x=heads.x.at[1, 5, 2, 7].set(jnp.nan))
    with emulated(monkeypatch, mosaic_gpu):
        _, scales = mosaic_gpu.quantized_queries(heads, 1.0)
    assert np.argwhere(np.isnan(np.asarray(scales))).tolist() == [[1, 2, 5]]


def test_refusals_name_what_was_found():
    heads = heads_of(SHAPES[0])
    with pytest.raises(NotImplementedError, match="float32"):
        norm_rope(
            dataclasses.replace(heads, x=heads.x.astype(jnp.float32)),
            implementation="mosaic_gpu",
        )
    with pytest.raises(ValueError, match=r"row_factor must be \(1, 256\)"):
        Heads(heads.x, row_factor=jnp.ones((256,)))
    with pytest.raises(ValueError, match=r"rotary.cos must be \(256, 32\)"):
        Heads(heads.x, rotary=heads.rotary._replace(text_rows=0))


@pytest.mark.parametrize("model", ["cogvideox-5b", "wan-1.3b"])
def test_lowers_for_cuda_at_real_shapes(model):
    tokens, text, count, head_dim, *_ = REAL_SHAPES[model]
    table = rotary(tokens, text, head_dim)
    x = jax.ShapeDtypeStruct((1, tokens, count, head_dim), jnp.bfloat16)

    def run(q, k, v):
        return norm_rope_qkv(
            Heads(q, norm="layer", rotary=table),
            Heads(k, norm="layer", rotary=table),
            v,
            implementation="mosaic_gpu",
        )

    text_of = jax.jit(run).trace(x, x, x).lower(lowering_platforms=("cuda",)).as_text()
    assert text_of.count("mosaic_gpu") >= 2
