"""Attention to chosen blocks: definition, lists, proxies, the kernel interpreted."""

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
    mosaic_gpu,
    quantize_qkv,
    quantized_attention,
    quantized_centroids,
    select,
    sparse_reference,
)
from pallas_kernels.attention.kernel import attend
from pallas_kernels.attention.lists import block_lists
from pallas_kernels.attention.memory import NUMBERS_PER_COPY
from pallas_kernels.attention.shapes import SPARSE
from pallas_kernels.attention.tiles import Tile
from tests.pallas_kernels import register_wgmma
from tests.pallas_kernels.test_attention import random_qkv, relative_error


def random_mask(grid, batch=1, heads=2, share=0.5):
    shape = (batch, heads, grid.q_tiles, grid.kv_blocks)
    return jax.random.uniform(jax.random.key(grid.kv_tokens), shape) < share


def weighted_mean(q, k, v, mask, grid, proxies, scale):
    """Sparse attention, one row after the other, in NumPy."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, t, h in np.ndindex(*q.shape[:3]):
        weights, values = [], []
        for block in range(grid.kv_blocks):
            part = slice(block * grid.block_kv, (block + 1) * grid.block_kv)
            keys, inside = k[b, part, h], v[b, part, h]
            if not mask[b, h, t // grid.block_rows, block]:
                if not proxies:
                    continue
                keys = np.repeat(keys.mean(0)[None], len(keys), 0)
            weights.append(np.exp(keys @ q[b, t, h] * scale))
            values.append(inside)
        weights, values = np.concatenate(weights), np.concatenate(values)
        out[b, t, h] = weights @ values / weights.sum()
    return out


@pytest.mark.parametrize("proxies", [False, True])
def test_reference_is_the_mean_of_chosen_keys_and_proxies(proxies):
    q, k, v = random_qkv(70, 90, batch=2)
    grid = BlockGrid(70, 90, 32, 16)
    mask = random_mask(grid, batch=2)
    made = centroids(q, k, v, grid) if proxies else None
    selection = select(mask, grid, made)
    found = attention(q, k, v, selection=selection, implementation="reference")
    mask = np.asarray(selection.chosen)
    expected = weighted_mean(q, k, v, mask, grid, proxies, 64**-0.5)
    assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("tokens", [200, 131])
def test_all_blocks_is_dense_attention(precision, tokens):
    q, k, v = random_qkv(tokens, tokens)
    grid = BlockGrid(tokens, tokens, 64, 32, text=(0, 10))
    selection = choose.everything(1, 2, grid, centroids(q, k, v, grid))
    assert float(selection.density()) == 1.0
    options = {"precision": precision, "implementation": "reference"}
    found = attention(q, k, v, selection=selection, **options)
    assert relative_error(found, attention(q, k, v, **options)) < 1e-6


def test_proxies_are_exact_where_the_keys_of_a_block_are_equal():
    q, k, v = random_qkv(96, 96)
    grid = BlockGrid(96, 96, 32, 16)
    k = jnp.repeat(k[:, ::16], 16, axis=1)
    selection = select(random_mask(grid, share=0.3), grid, centroids(q, k, v, grid))
    assert float(selection.density()) < 0.6
    found = attention(q, k, v, selection=selection, implementation="reference")
    dense = attention(q, k, v, implementation="reference")
    assert relative_error(found, dense) < 1e-6


def test_a_list_has_the_chosen_blocks_in_order():
    grid = BlockGrid(100, 150, 40, 16)
    mask = random_mask(grid, heads=3).at[0, 1, 2].set(False)
    made = select(mask, grid)
    expected = np.asarray(mask.at[0, 1, 2, 0].set(True))
    np.testing.assert_array_equal(made.chosen, expected)
    for place in np.ndindex(*mask.shape[:3]):
        count = int(made.counts[place])
        chosen = np.flatnonzero(expected[place])
        np.testing.assert_array_equal(made.blocks[place][:count], chosen)
        assert (np.asarray(made.blocks[place][count:]) == grid.kv_blocks).all()
    assert float(made.density()) == pytest.approx(expected.mean())


def test_text_attends_to_all_and_is_attended_by_all():
    grid = BlockGrid(300, 300, 64, 32, text=(10, 70))
    made = np.asarray(select(jnp.zeros((1, 1, 5, 10), bool), grid).chosen)[0, 0]
    assert made[:2].all()
    np.testing.assert_array_equal(made[2:], np.arange(10)[None].repeat(3, 0) < 3)


def test_centroids_are_means_of_what_is_there():
    q, k, v = random_qkv(70, 90)
    grid = BlockGrid(70, 90, 32, 16)
    made = centroids(q, k, v, grid, scale=0.5)
    exponents = np.asarray(q, np.float64) * (0.5 / np.log(2.0))
    for found, whole, size in (
        (made.queries, exponents, 32),
        (made.keys, k, 16),
        (made.values, v, 16),
    ):
        starts = range(0, whole.shape[1], size)
        expected = [np.asarray(whole[:, s : s + size]).mean(1) for s in starts]
        assert relative_error(found, np.stack(expected, 1)) < 1e-6


def test_quantized_centroids_are_means_of_the_quantized_operands():
    q, k, v = random_qkv(70, 300)
    operands = quantize_qkv(q, k, v, scale=0.5)
    grid = BlockGrid(70, 300, 32, 64)
    made = quantized_centroids(operands, grid)
    q32, k32 = operands.dequantize()
    expected = centroids(q32, k32, v, grid, scale=1.0)
    assert relative_error(made.queries, expected.queries) < 1e-6
    assert relative_error(made.keys, expected.keys) < 1e-6
    assert relative_error(made.values, expected.values) < 1e-6
    values, scales = made.quantized_keys(2)
    assert scales.shape == (1, 2, 3)
    each = jnp.repeat(scales, 2, axis=-1)[..., :5]
    rounded = values * jnp.swapaxes(each, 1, 2)[..., None]
    assert relative_error(rounded, made.keys) < 0.01
    with pytest.raises(ValueError, match="128"):
        quantized_centroids(operands, BlockGrid(70, 300, 32, 48))


# Keys beyond `kv_tokens` fill the last block, as copies past the end do on a GPU.
@pytest.mark.parametrize(
    ("precision", "proxies", "turns"),
    [("bf16", False, True), ("bf16", True, False), ("int8", True, False)],
)
def test_kernel_equals_reference_in_the_interpreter(
    precision, proxies, turns, monkeypatch
):
    register_wgmma.allow(monkeypatch)
    q, k, v = random_qkv(256, 300, heads=1, dtype=jnp.bfloat16)
    grid = BlockGrid(256, 300, 128, 64)
    # The first tile has the partial block alone, the second some and not that one.
    chosen = [[4], [0, 2, 3]]
    mask = np.zeros((1, 1, 2, 5), bool)
    for row, blocks in enumerate(chosen):
        mask[0, 0, row, blocks] = True
    quantized = precision == "int8"
    operands, scales, expected = (q, k, v), (None, None), None
    if quantized:
        made = quantize_qkv(q, k, v)
        means = quantized_centroids(made, grid)
        operands = (made.q_values, made.k_values, made.v)
        missing = -made.k_scales.shape[-1] % NUMBERS_PER_COPY
        padded = jnp.pad(made.k_scales, ((0, 0), (0, 0), (0, missing)))
        scales = (made.q_scales, padded)
        selection = select(jnp.asarray(mask), grid, means)
        expected = sparse_reference.quantized_attention(made, selection)
    else:
        means = centroids(q, k, v, grid) if proxies else None
        selection = select(jnp.asarray(mask), grid, means)
        expected = attention(q, k, v, selection=selection, implementation="reference")
    filled = [
        jnp.pad(x, ((0, 0), (0, 20), (0, 0), (0, 0)), constant_values=3)
        for x in operands[1:]
    ]
    found, sums = attend(
        operands[0],
        filled[0],
        filled[1],
        scales[0],
        scales[1],
        block_lists(selection, jnp.bfloat16, quantized=quantized),
        kv_tokens=300,
        scale=1.0 if quantized else 64**-0.5,
        tile=Tile(64, 2, 2, turns=turns),
        scale_tokens=128 if quantized else 0,
        interpret=True,
    )
    assert relative_error(found, expected) < 0.004
    assert bool(jnp.all(sums > 0))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("proxies", [False, True])
@pytest.mark.parametrize(
    ("tokens", "heads", "head_dim"), [shape[1:4] for shape in SPARSE]
)
def test_kernel_lowers_for_a_gpu_with_its_choice(
    precision, proxies, tokens, heads, head_dim, lower_for_cuda
):
    q = jax.ShapeDtypeStruct((1, tokens, heads, head_dim), jnp.bfloat16)
    grid = block_grid(q.shape, precision=precision, text=(0, 226))

    def run(q, k, v):
        if precision == "int8":
            operands = quantize_qkv(q, k, v)
            made = quantized_centroids(operands, grid)
            selection = choose.by_threshold(made, grid, 0.5, approximate=proxies)
            return quantized_attention(
                operands, selection=selection, implementation="mosaic_gpu"
            )
        made = centroids(q, k, v, grid)
        selection = choose.by_threshold(made, grid, 0.5, approximate=proxies)
        return attention(q, k, v, selection=selection, implementation="mosaic_gpu")

    assert "mosaic_gpu" in lower_for_cuda(run, q, q, q)


def test_a_selection_of_other_operands_or_blocks_is_refused():
    q, k, v = random_qkv(256, 256, dtype=jnp.bfloat16)
    grid = block_grid((1, 256, 2, 64))
    other = BlockGrid(255, 256, grid.block_rows, grid.block_kv)
    with pytest.raises(ValueError, match=r"\(1, 2, 256, 256\).*\(1, 2, 255, 256\)"):
        attention(q, k, v, selection=choose.everything(1, 2, other))
    with pytest.raises(ValueError, match=r"found \(1, 3, 256, 256\)"):
        quantized_attention(
            quantize_qkv(q, k, v), selection=choose.everything(1, 3, grid)
        )
    small = choose.everything(1, 2, BlockGrid(256, 256, 32, 32))
    with pytest.raises(NotImplementedError, match=r"\(32, 32\)"):
        attention(q, k, v, selection=small, implementation="mosaic_gpu")
    with pytest.raises(NotImplementedError, match="192 queries by 128 keys"):
        mosaic_gpu.attention(
            q, k, v, scale=1.0, precision="bf16", selection=small, tile=Tile(128, 2, 3)
        )
    with pytest.raises(ValueError, match="has no implementation 'cudnn'"):
        attention(
            q,
            k,
            v,
            selection=choose.everything(1, 2, grid),
            implementation="cudnn",
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, 4, 4), "positive"),
        ((5, 5, 4, 4, (3, 6)), "inside 5"),
        ((5, 8, 4, 4, (0, 2)), "as many queries"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BlockGrid(*arguments)


def test_a_mask_of_another_shape_is_refused():
    grid = BlockGrid(10, 10, 4, 4)
    with pytest.raises(ValueError, match=r"3, 3\].*\(1, 1, 3, 4\)"):
        select(jnp.ones((1, 1, 3, 4), bool), grid)
