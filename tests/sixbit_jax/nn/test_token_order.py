"""Orders of tokens: permutations, compact blocks, text and tables in their places."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.nn.rope import RotaryTable
from sixbit_jax.nn.token_order import reordered, restored, token_order


def places(grid, order):
    return np.stack(np.unravel_index(token_order(grid, order), grid), -1)


@pytest.mark.parametrize("grid", [(4, 4, 4), (3, 5, 7), (13, 8, 8), (1, 1, 1)])
@pytest.mark.parametrize("order", ["morton", "hilbert"])
def test_every_token_stands_somewhere(grid, order):
    found = token_order(grid, order)
    np.testing.assert_array_equal(np.sort(found), np.arange(np.prod(grid)))


def test_morton_interleaves_the_bits_of_frame_row_and_column():
    expected = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0)]
    np.testing.assert_array_equal(places((4, 4, 4), "morton")[:5], expected)
    np.testing.assert_array_equal(places((4, 4, 4), "morton")[8], (0, 0, 2))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_hilbert_goes_from_neighbour_to_neighbour(size):
    steps = np.abs(np.diff(places((size,) * 3, "hilbert"), axis=0)).sum(1)
    assert (steps == 1).all()


@pytest.mark.parametrize("order", ["morton", "hilbert"])
def test_blocks_are_smaller_boxes_than_rows_of_frames(order):
    grid = (13, 30, 45)

    def spread(found):
        blocks = found[: len(found) // 128 * 128].reshape(-1, 128, 3)
        return np.std(blocks, axis=1).sum(1).mean()

    frames = np.stack(np.indices(grid), -1).reshape(-1, 3)
    assert spread(places(grid, order)) < 0.6 * spread(frames)


class Conditioning(NamedTuple):
    rotary: RotaryTable | None
    num_text: int = 0
    num_clean: int = 0
    other: Any = None


@pytest.mark.parametrize(("text", "rows"), [(0, 8), (3, 8), (0, 10)])
def test_text_stays_and_tables_follow_their_tokens(text, rows):
    order = token_order((2, 2, 2), "hilbert")
    x = jnp.arange(11.0).reshape(1, 11, 1)
    table = np.arange(rows)[:, None]
    given = Conditioning(RotaryTable(table, -table), text)
    moved, conditioning = reordered(x, given, order)
    np.testing.assert_array_equal(moved[0, :text, 0], np.arange(text))
    np.testing.assert_array_equal(moved[0, text : text + 8, 0], text + order)
    np.testing.assert_array_equal(moved[0, text + 8 :, 0], np.arange(text + 8, 11))
    np.testing.assert_array_equal(conditioning.rotary.cos[:8, 0], order)
    np.testing.assert_array_equal(conditioning.rotary.cos[8:, 0], np.arange(8, rows))
    np.testing.assert_array_equal(conditioning.rotary.sin, -conditioning.rotary.cos)
    np.testing.assert_array_equal(restored(moved, conditioning, order), x)


def test_given_first_frames_must_stay_first():
    order = token_order((2, 2, 2), "morton")
    with pytest.raises(ValueError, match="found another one and 4 of their tokens"):
        reordered(jnp.zeros((1, 8, 1)), Conditioning(None, num_clean=4), order)


def test_another_order_is_refused():
    assert token_order((2, 2, 2), "frames") is None
    with pytest.raises(ValueError, match="found 'snake'"):
        token_order((2, 2, 2), "snake")
