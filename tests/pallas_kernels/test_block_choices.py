"""Ways of choosing blocks of keys, each against its formula."""

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
    quantized_centroids,
    select,
    sparse_reference,
)
from tests.pallas_kernels.test_attention import random_qkv

GRID = BlockGrid(300, 300, 48, 16, text=(0, 20))


def threshold_mask(made, tau):
    """The test of Sol-Attn in NumPy, head by head."""
    queries, keys = (np.asarray(x, np.float64) for x in (made.queries, made.keys))
    batch, tiles, heads, _ = queries.shape
    found = np.zeros((batch, heads, tiles, keys.shape[1]), bool)
    for b, i, h in np.ndindex(batch, tiles, heads):
        c, k = queries[b, i, h], keys[b, :, h]
        deviation = np.sqrt((c**2 * k.var(0)).sum() + 1e-6)
        found[b, h, i] = k @ c > c @ k.mean(0) + tau * deviation
    return found


@pytest.mark.parametrize("tau", [-0.7, 0.0, 0.8])
def test_threshold_follows_its_formula(tau):
    q, k, v = random_qkv(300, 300, batch=2)
    made = centroids(q, k, v, GRID)
    selection = choose.by_threshold(made, GRID, tau)
    expected = threshold_mask(made, tau) | GRID.near() | GRID.always()
    np.testing.assert_array_equal(selection.chosen, expected)
    assert selection.centroids is made
    assert choose.by_threshold(made, GRID, tau, approximate=False).centroids is None


def test_threshold_limits_are_dense_and_what_is_never_skipped():
    q, k, v = random_qkv(300, 300)
    made = centroids(q, k, v, GRID)

    @jax.jit
    def density_and_mask(tau):
        selection = choose.by_threshold(made, GRID, tau)
        return selection.density(), selection.chosen

    assert float(density_and_mask(-jnp.inf)[0]) == 1.0
    least = np.asarray(density_and_mask(jnp.inf)[1])[0, 0]
    np.testing.assert_array_equal(least, GRID.near() | GRID.always())
    shares = [float(density_and_mask(tau)[0]) for tau in (-1.0, 0.0, 0.5, 2.0)]
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == 4


def test_blocks_that_touch_a_tile_are_near():
    grid = BlockGrid(40, 40, 12, 8)
    np.testing.assert_array_equal(
        grid.near(),
        [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 0, 1, 1]],
    )
    assert not BlockGrid(40, 48, 12, 8).near().any()


def test_history_only_grows_and_spares_text_and_first_blocks():
    q, k, _ = random_qkv(300, 300)
    state = choose.no_skips(1, 2, GRID)
    assert float(choose.by_history(state, GRID).density()) == 1.0
    shares = []
    for step in range(3):
        selection = choose.by_history(state, GRID)
        before = np.asarray(selection.chosen)
        turned = jnp.roll(q, 60 * step, axis=1)
        rises = sparse_reference.block_rises(turned, k, selection, scale=0.125)
        state = choose.after_step(state, rises, GRID, threshold=-1.5)
        after = np.asarray(choose.by_history(state, GRID).chosen)
        assert not (after & ~before).any()
        assert (after | ~np.broadcast_to(GRID.always(), after.shape)).all()
        shares.append(after.mean())
    assert 1 > shares[0] > shares[1] > shares[2] > 0
    assert state.dtype == jnp.uint8
    assert state.shape == (1, 2, GRID.q_tiles, -(-GRID.kv_blocks // 8))


def test_after_step_skips_at_the_threshold_and_below():
    grid = BlockGrid(8, 64, 8, 8)
    rises = jnp.asarray([jnp.inf, -9.0, -10.0, -11.0, 0.0, -10.5, 3.0, -30.0])
    state = choose.after_step(
        choose.no_skips(1, 1, grid), rises[None, None, None], grid
    )
    mask = np.asarray(choose.by_history(state, grid).chosen)[0, 0, 0]
    np.testing.assert_array_equal(mask, [1, 1, 0, 0, 1, 0, 1, 0])


def test_a_rise_is_the_largest_share_a_block_adds_to_a_row():
    q, k, _ = random_qkv(70, 90)
    grid = BlockGrid(70, 90, 32, 16)
    mask = np.ones((1, 2, 3, 6), bool)
    mask[0, 1, 2] = [False, True, False, True, True, True]
    mask[0, 0, 0, 3] = False
    selection = select(jnp.asarray(mask), grid)
    found = np.asarray(sparse_reference.block_rises(q, k, selection, scale=0.3))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k).astype(np.float64) * 0.3
    for h, i in np.ndindex(2, 3):
        rows = np.exp(scores[0, h, i * 32 : min(70, (i + 1) * 32)])
        before = np.zeros(len(rows))
        for j in range(6):
            mass = rows[:, j * 16 : (j + 1) * 16].sum(1)
            if not mask[0, h, i, j] or not before.any():
                assert found[0, h, i, j] == np.inf
            else:
                expected = np.log2(mass / before).max()
                assert found[0, h, i, j] == pytest.approx(expected, rel=1e-4, abs=1e-4)
            before = before + mass * mask[0, h, i, j]


def any_pair(grid, tokens_per_frame, chosen):
    """Blocks that hold a pair of video tokens which may attend, token by token."""
    start, stop = grid.text
    video = [t for t in range(grid.kv_tokens) if not start <= t < stop]
    place = {t: divmod(i, tokens_per_frame) for i, t in enumerate(video)}
    mask = np.zeros((grid.q_tiles, grid.kv_blocks), bool)
    for a in video:
        for b in video:
            (frame, inside), (key_frame, key_inside) = place[a], place[b]
            pair = abs(frame - key_frame), abs(inside - key_inside), key_frame
            if chosen(*pair):
                mask[a // grid.block_rows, b // grid.block_kv] = True
    return mask | grid.always()


@pytest.mark.parametrize("width", [1.0, 0.25, 0.06])
def test_radial_mask_is_that_of_its_tokens(width):
    grid, frame = BlockGrid(198, 198, 12, 8, text=(180, 198)), 18

    def chosen(frames, apart, key_frame):
        octave = 2 ** int(np.log2(max(frames, 1)))
        span = width * frame / octave
        if span < 1:
            near = apart == 0 and frames % max(int(np.ceil(1 / span)), 1) == 0
        else:
            near = apart < span
        return near or key_frame == 0

    made = choose.radial(2, 3, grid, tokens_per_frame=frame, width=width)
    expected = any_pair(grid, frame, chosen)
    mask = np.asarray(made.chosen)
    assert mask.shape[:2] == (2, 3)
    np.testing.assert_array_equal(mask[1, 2], expected)
    assert float(made.density()) == pytest.approx(expected.mean())


def test_radial_mask_gets_sparser_with_its_width():
    grid = BlockGrid(17_776, 17_776, 192, 128, text=(0, 226))
    shares = [
        float(choose.radial(1, 1, grid, tokens_per_frame=1350, width=width).density())
        for width in (1.0, 0.5, 0.25)
    ]
    assert 1 > shares[0] > shares[1] > shares[2] > 0.1


@pytest.mark.parametrize("frames", [0, 2])
def test_window_mask_is_that_of_its_frames(frames):
    grid = BlockGrid(100, 100, 24, 8, text=(0, 10))
    made = choose.window(1, 1, grid, tokens_per_frame=18, frames=frames)
    expected = any_pair(grid, 18, lambda apart, *_: apart <= frames)
    np.testing.assert_array_equal(np.asarray(made.chosen)[0, 0], expected)


def test_masks_over_frames_need_one_sequence():
    with pytest.raises(ValueError, match="8 and 16"):
        choose.window(1, 1, BlockGrid(8, 16, 4, 4), tokens_per_frame=4, frames=1)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_attention_says_how_much_each_block_adds(precision):
    q, k, v = random_qkv(96, 96)
    grid = BlockGrid(96, 96, 32, 16)
    shape = (1, 2, grid.q_tiles, grid.kv_blocks)
    mask = jax.random.uniform(jax.random.key(3), shape) < 0.6
    selection = select(mask, grid)
    options = {"precision": precision, "implementation": "reference"}
    out, rises = attention(q, k, v, selection=selection, rises=True, **options)
    expected = attention(q, k, v, selection=selection, **options)
    np.testing.assert_array_equal(out, expected)
    assert rises.shape == shape
    first = jnp.cumsum(selection.chosen, -1) == 1
    later = np.asarray(selection.chosen & ~first)
    assert np.isfinite(rises[later]).all()
    assert np.isinf(rises[~later]).all()
    with pytest.raises(ValueError, match="found no selection"):
        attention(q, k, v, rises=True)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_means_lists_and_rises_lower_for_a_gpu(precision, lower_for_cuda):
    q = jax.ShapeDtypeStruct((2, 1001, 3, 64), jnp.bfloat16)
    grid = block_grid(q.shape, precision=precision, text=(0, 226))
    named = {"implementation": "mosaic_gpu"}

    def run(q, k, v):
        if precision == "int8":
            operands = quantize_qkv(q, k, v)
            made = quantized_centroids(operands, grid, **named)
            chosen = choose.by_threshold(made, grid, 0.5, **named)
            return quantized_attention(operands, selection=chosen, rises=True, **named)
        made = centroids(q, k, v, grid, **named)
        chosen = choose.by_threshold(made, grid, 0.5, **named)
        return attention(q, k, v, selection=chosen, rises=True, **named)

    # Means, lists, and attention twice: the second for rows that overflow.
    assert lower_for_cuda(run, q, q, q).count("mosaic_gpu_v2") >= 3


def test_means_of_other_arrays_have_no_kernel():
    q, k, v = random_qkv(96, 96)
    with pytest.raises(NotImplementedError, match="found float32"):
        centroids(q, k, v, BlockGrid(96, 96, 32, 16), implementation="mosaic_gpu")
