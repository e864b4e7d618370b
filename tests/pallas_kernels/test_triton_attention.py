"""The Triton attention kernel against its definition, in the interpreter."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import (
    attention,
    quantize_qkv,
    quantized_attention,
    triton,
)
from tests.pallas_kernels.test_attention import random_qkv, relative_error
from tests.pallas_kernels.triton_interpreter import interpreted

SMALL = triton.Tile(rows=32, keys=32, warps=4, stages=2)


def run(q, k, v, precision="bf16", tile=SMALL, **options):
    with interpreted():
        return triton.attention(
            q,
            k,
            v,
            scale=q.shape[-1] ** -0.5,
            precision=precision,
            tile=tile,
            **options,
        )


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize(
    ("q_tokens", "kv_tokens", "head_dim", "batch"),
    [(70, 70, 64, 2), (33, 41, 128, 1), (5, 300, 64, 1), (40, 17, 64, 1)],
)
def test_kernel_equals_reference(precision, q_tokens, kv_tokens, head_dim, batch):
    q, k, v = random_qkv(
        q_tokens, kv_tokens, head_dim=head_dim, batch=batch, dtype=jnp.bfloat16
    )
    found = run(q, k, v, precision)
    expected = attention(q, k, v, precision=precision, implementation="reference")
    assert found.shape == expected.shape
    assert relative_error(found, expected) < 4e-3


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_scores_that_rise_after_the_first_block_stay_right(precision, dtype):
    q, k, v = random_qkv(40, 200, dtype=jnp.float32)
    factors = jnp.where(jnp.arange(200) < 32, 1.0, 150.0)
    k = k * factors[:, None, None]
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    # Quantized operands are compared with the same quantized operands.
    if precision == "int8":
        made = quantize_qkv(q, k, v)
        with interpreted():
            found = triton.quantized_attention(made, tile=SMALL)
        expected = quantized_attention(made, implementation="reference")
    else:
        found = run(q, k, v)
        expected = attention(q, k, v, implementation="reference")
    assert relative_error(found, expected) < 4e-3


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_hidden_keys_may_be_anything(precision):
    lengths = (13, 64, 1)
    q, k, v = random_qkv(20, 70, batch=3, dtype=jnp.bfloat16)
    hidden = np.arange(70) >= np.array(lengths)[:, None]
    v = jnp.where(hidden[..., None, None], jnp.nan, v)
    options = {"key_lengths": jnp.array(lengths)}
    found = run(q, k, v, precision, **options)
    expected = attention(
        q, k, v, precision=precision, implementation="reference", **options
    )
    assert relative_error(found, expected) < 4e-3


def test_tiles_wider_than_the_keys_of_a_scale_use_both_scales():
    q, k, v = random_qkv(40, 200, dtype=jnp.bfloat16)
    k = k.at[:, 32:].multiply(5.0)
    made = quantize_qkv(q, k, v, scale_tokens=32)
    with interpreted():
        found = triton.quantized_attention(made, tile=SMALL._replace(keys=64))
    expected = quantized_attention(made, implementation="reference")
    assert relative_error(found, expected) < 4e-3


def test_a_query_of_nan_leaves_the_others_alone():
    q, k, v = random_qkv(40, 70, dtype=jnp.bfloat16)
    found = np.asarray(run(q.at[0, 5, 0].set(jnp.nan), k, v), np.float32)
    expected = np.asarray(run(q, k, v), np.float32)
    assert np.isnan(found[0, 5, 0]).all()
    found[0, 5, 0] = expected[0, 5, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)


def test_refuses_what_it_cannot_do_with_the_reason():
    q, k, v = random_qkv(16, 16)
    with pytest.raises(NotImplementedError, match="float32"):
        attention(q, k, v, implementation="triton")
