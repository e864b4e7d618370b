"""Attention: the reference against a plain softmax, quantization, and dispatch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import attention, quantize_qkv, reference
from pallas_kernels.attention.tiles import choose_tile, scale_tokens


def random_qkv(q_tokens, kv_tokens, heads=2, head_dim=64, batch=1, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(q_tokens + kv_tokens), 3)
    tokens = (q_tokens, kv_tokens, kv_tokens)
    return tuple(
        jax.random.normal(key, (batch, n, heads, head_dim), dtype)
        for key, n in zip(keys, tokens, strict=True)
    )


def softmax_attention(q, k, v):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, v)


def relative_error(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(("q_tokens", "kv_tokens"), [(33, 33), (70, 17), (1, 5)])
def test_reference_is_softmax_attention(q_tokens, kv_tokens):
    q, k, v = random_qkv(q_tokens, kv_tokens, batch=2)
    found = attention(q, k, v, implementation="reference")
    assert relative_error(found, softmax_attention(q, k, v)) < 1e-6


def test_reference_gives_the_same_result_in_blocks_of_rows(monkeypatch):
    q, k, v = random_qkv(50, 40)
    whole = attention(q, k, v, implementation="reference")
    monkeypatch.setattr(reference, "_SCORE_BYTES", 4 * 2 * 40 * 16)
    assert relative_error(attention(q, k, v, implementation="reference"), whole) < 1e-6


def test_int8_attention_ignores_a_bias_of_the_keys():
    q, k, v = random_qkv(64, 200)
    biased = k + 20.0 * jnp.ones((k.shape[-1],))
    expected = softmax_attention(q, k, v)
    found = attention(q, biased, v, precision="int8", implementation="reference")
    assert relative_error(found, expected) < 0.03


def test_quantized_scores_are_exponents_of_two():
    q, k, v = random_qkv(20, 300)
    made = quantize_qkv(q, k, v, scale=0.5)
    exponent = (
        np.einsum(
            "bqhd,bkhd->bhqk",
            np.asarray(made.q_values, np.float64),
            np.asarray(made.k_values, np.float64),
        )
        * np.asarray(made.q_scales)[..., None]
    )
    scales = np.repeat(np.asarray(made.k_scales), 128, axis=-1)[..., None, :300]
    centred = np.asarray(k - k.mean(1, keepdims=True), np.float64)
    scores = np.einsum("bqhd,bkhd->bhqk", np.asarray(q, np.float64), centred) * 0.5
    assert relative_error(exponent * scales * np.log(2.0), scores) < 0.02


def test_zero_queries_and_keys_quantize_to_a_plain_mean():
    v = random_qkv(8, 130)[2]
    zeros = jnp.zeros_like(v)
    found = attention(zeros, zeros, v, precision="int8", implementation="reference")
    assert relative_error(found[:, 0], np.asarray(v).mean(1)) < 1e-5


def test_a_cpu_takes_the_reference():
    q, k, v = random_qkv(16, 16)
    np.testing.assert_array_equal(
        attention(q, k, v), attention(q, k, v, implementation="reference")
    )


def test_shapes_that_do_not_belong_together_are_refused():
    q, k, v = random_qkv(16, 24)
    with pytest.raises(ValueError, match="one shape"):
        attention(q, k, v[:, :-1])
    with pytest.raises(ValueError, match="agree"):
        attention(q, k[..., :32], v)
    with pytest.raises(ValueError, match="precision"):
        attention(q, k, v, precision="fp4")


def test_cudnn_refuses_float32():
    q, k, v = random_qkv(16, 16)
    with pytest.raises(NotImplementedError, match="float32"):
        attention(q, k, v, implementation="cudnn")


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize(
    ("q_tokens", "kv_tokens", "head_dim"), [(300, 300, 64), (200, 41, 128)]
)
def test_kernel_lowers_for_a_gpu_at_any_token_count(
    precision, q_tokens, kv_tokens, head_dim
):
    q, k, v = random_qkv(q_tokens, kv_tokens, head_dim=head_dim, dtype=jnp.bfloat16)

    def run(q, k, v):
        return attention(q, k, v, precision=precision, implementation="mosaic_gpu")

    text = jax.jit(run).trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text
    assert jax.eval_shape(run, q, k, v).shape == q.shape


@pytest.mark.parametrize(
    ("q_tokens", "heads", "warpgroups"),
    [
        (17_776, 48, 3),  # 33.8 waves of 192 rows a block
        (17_776, 30, 4),  # 21.1 waves of 192, or 15.9 of 256
        (4_711, 48, 4),  # 9.1 or 6.9
    ],
)
def test_the_tile_with_the_fuller_last_wave_is_chosen(q_tokens, heads, warpgroups):
    for quantized in (False, True):
        tile = choose_tile((1, q_tokens, heads, 64), quantized=quantized)
        assert tile.warpgroups == warpgroups
        assert scale_tokens(64) % tile.block_kv == 0
    half = choose_tile((1, q_tokens, heads, 64), quantized=False, dtype=jnp.float16)
    assert (half.warpgroups, half.online) == (3, True)


def test_waste_counts_empty_rows_and_empty_multiprocessors():
    tile = choose_tile((1, 192, 132, 64), quantized=True)
    assert tile.busy(192, 132) == 1.0
    assert tile.busy(96, 132) == 0.5
    assert tile.busy(192, 133) == pytest.approx(133 / 264)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_kernel_with_four_warpgroups_lowers_for_a_gpu(precision):
    q, k, v = random_qkv(256, 300, heads=132, dtype=jnp.bfloat16)
    assert choose_tile(q.shape, quantized=True).warpgroups == 4

    def run(q, k, v):
        return attention(q, k, v, precision=precision, implementation="mosaic_gpu")

    text = jax.jit(run).trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text


def test_kernel_refuses_what_it_cannot_do():
    q, k, v = random_qkv(16, 16)
    with pytest.raises(NotImplementedError, match="float32"):
        attention(q, k, v, implementation="mosaic_gpu")
    q, k, v = random_qkv(16, 16, head_dim=80, dtype=jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="80"):
        attention(q, k, v, implementation="mosaic_gpu")
