"""Attention to the first keys of each batch entry: padding is invisible."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import (
    BlockGrid,
    attention,
    block_grid,
    centroids,
    choose,
    quantize_qkv,
    quantized_attention,
    select,
)
from pallas_kernels.attention.kernel import attend
from pallas_kernels.attention.lists import block_lists
from pallas_kernels.attention.memory import NUMBERS_PER_COPY
from pallas_kernels.attention.tiles import Tile
from tests.pallas_kernels import register_wgmma
from tests.pallas_kernels.test_attention import (
    random_qkv,
    relative_error,
    softmax_attention,
)

LENGTHS = (13, 24, 1)


def cut_one_by_one(q, k, v, lengths):
    rows = [
        softmax_attention(q[i : i + 1], k[i : i + 1, :n], v[i : i + 1, :n])
        for i, n in enumerate(lengths)
    ]
    return np.concatenate(rows)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_reference_is_attention_to_the_keys_that_count(precision):
    q, k, v = random_qkv(20, 24, batch=3)
    # What is hidden may be anything.
    hidden = np.arange(24) >= np.array(LENGTHS)[:, None]
    v = jnp.where(hidden[..., None, None], jnp.nan, v)
    found = attention(
        q,
        k,
        v,
        precision=precision,
        key_lengths=jnp.array(LENGTHS),
        implementation="reference",
    )
    limit = 1e-6 if precision == "bf16" else 0.03
    assert relative_error(found, cut_one_by_one(q, k, v, LENGTHS)) < limit


def test_sparse_reference_of_all_blocks_is_dense():
    q, k, v = random_qkv(24, 24, batch=3)
    grid = BlockGrid(24, 24, 8, 8, text=(0, 24))
    everything = choose.everything(3, 2, grid, centroids(q, k, v, grid))
    found = attention(q, k, v, selection=everything, key_lengths=jnp.array(LENGTHS))
    assert relative_error(found, cut_one_by_one(q, k, v, LENGTHS)) < 1e-6


# The first block is cut; no key is; a block's end; one key of the last block.
@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("length", [40, 300, 128, 257])
def test_kernel_equals_reference_in_the_interpreter(precision, length, monkeypatch):
    register_wgmma.allow(monkeypatch)
    q, k, v = random_qkv(128, 300, heads=1, dtype=jnp.bfloat16)
    counts = jnp.array([length])
    quantized = precision == "int8"
    if quantized:
        made = quantize_qkv(q, k, v)
        missing = -made.k_scales.shape[-1] % NUMBERS_PER_COPY
        padded = jnp.pad(made.k_scales, ((0, 0), (0, 0), (0, missing)))
        operands = (made.q_values, made.k_values, made.v, made.q_scales, padded)
        expected = quantized_attention(
            made, key_lengths=counts, implementation="reference"
        )
    else:
        operands = (q, k, v, None, None)
        expected = attention(q, k, v, key_lengths=counts, implementation="reference")
    q_in, *rest = operands
    filled = [
        jnp.pad(x, ((0, 0), (0, 20), (0, 0), (0, 0)), constant_values=3)
        for x in rest[:2]
    ]
    found, sums = attend(
        q_in,
        *filled,
        *rest[2:],
        None,
        counts,
        kv_tokens=300,
        scale=1.0 if quantized else 64**-0.5,
        tile=Tile(64, 2, 2),
        scale_tokens=128 if quantized else 0,
        interpret=True,
    )
    assert relative_error(found, expected) < 0.004
    assert bool(jnp.all(sums > 0))


def test_each_batch_entry_has_its_own_length_in_the_interpreter(monkeypatch):
    register_wgmma.allow(monkeypatch)
    q, k, v = random_qkv(64, 192, heads=1, batch=2, dtype=jnp.bfloat16)
    counts = jnp.array([70, 192])
    found, _ = attend(
        q,
        k,
        v,
        key_lengths=counts,
        kv_tokens=192,
        scale=64**-0.5,
        tile=Tile(64, 2, 2, turns=False),
        interpret=True,
    )
    expected = attention(q, k, v, key_lengths=counts, implementation="reference")
    assert relative_error(found, expected) < 0.004


def test_chosen_blocks_are_cut_in_the_interpreter(monkeypatch):
    """Text is in the last two blocks of five, and ends in the first of them."""
    register_wgmma.allow(monkeypatch)
    q, k, v = random_qkv(300, 300, heads=1, dtype=jnp.bfloat16)
    grid = BlockGrid(300, 300, 128, 64, text=(200, 300))
    mask = np.zeros((1, 1, 3, 5), bool)
    mask[0, 0, 0, 1] = True
    selection = select(jnp.asarray(mask | grid.always()), grid)
    counts = jnp.array([210])
    expected = attention(
        q, k, v, selection=selection, key_lengths=counts, implementation="reference"
    )
    filled = [
        jnp.pad(x, ((0, 0), (0, 20), (0, 0), (0, 0)), constant_values=3)
        for x in (q, k, v)
    ]
    found, _ = attend(
        *filled,
        lists=block_lists(selection, jnp.bfloat16, quantized=False),
        key_lengths=counts,
        kv_tokens=300,
        scale=64**-0.5,
        tile=Tile(64, 2, 2, turns=False),
        cut_blocks=2,
        interpret=True,
    )
    assert relative_error(found[:, :300], expected) < 0.004


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("sparse", [False, True])
def test_kernel_lowers_for_a_gpu_at_the_size_of_720p(precision, sparse, lower_for_cuda):
    q = jax.ShapeDtypeStruct((1, 119_056, 24, 128), jnp.bfloat16)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    grid = block_grid(q.shape, precision=precision, text=(118_800, 119_056))

    def run(q, k, v, lengths):
        selection = choose.everything(1, 24, grid) if sparse else None
        return attention(
            q,
            k,
            v,
            precision=precision,
            selection=selection,
            key_lengths=lengths,
            implementation="mosaic_gpu",
        )

    assert "mosaic_gpu" in lower_for_cuda(run, q, q, q, lengths)


def test_lengths_of_other_operands_are_refused():
    q, k, v = random_qkv(16, 16, batch=2)
    with pytest.raises(ValueError, match=r"integers \[2\], found int32 \(3,\)"):
        attention(q, k, v, key_lengths=jnp.array([1, 2, 3]))
    with pytest.raises(ValueError, match="found float32"):
        attention(q, k, v, key_lengths=jnp.ones(2))
    selection = choose.everything(2, 2, BlockGrid(16, 16, 8, 8, text=(0, 8)))
    with pytest.raises(ValueError, match=r"last of 16 keys .* found \(0, 8\)"):
        attention(q, k, v, selection=selection, key_lengths=jnp.array([9, 9]))
