"""Captions, attributes and the combinations kept from training."""

import numpy as np
import pytest

from sixbit_jax.demo import vocabulary


def test_every_caption_reads_back_as_its_attributes():
    rows = vocabulary.combinations()
    captions = [vocabulary.caption_of(row) for row in rows]
    assert len(set(captions)) == len(rows)
    np.testing.assert_array_equal(vocabulary.parse_captions(captions), rows)


def test_case_blanks_and_full_stop_do_not_matter():
    found = vocabulary.parse_captions(
        ["A red  circle moves left on a blue background."]
    )
    assert vocabulary.caption_of(found[0]) == (
        "a red circle moves left on a blue background"
    )


def test_shape_and_background_never_share_a_colour():
    rows = vocabulary.combinations()
    assert (rows[:, 1] != rows[:, 2]).all()


def test_held_out_combinations_are_a_tenth_and_disjoint_from_training():
    held_out = {tuple(row) for row in vocabulary.held_out_combinations().tolist()}
    training = {tuple(row) for row in vocabulary.training_combinations().tolist()}
    total = len(vocabulary.combinations())
    assert not held_out & training
    assert len(held_out) + len(training) == total
    assert 0.07 < len(held_out) / total < 0.13


def test_training_shows_every_pair_of_attribute_values():
    rows = vocabulary.training_combinations()
    every = vocabulary.combinations()
    for first in range(4):
        for second in range(first):
            pairs = [
                {tuple(pair) for pair in part[:, [first, second]].tolist()}
                for part in (rows, every)
            ]
            assert pairs[0] == pairs[1]


def test_is_held_out_tells_the_two_sets_apart():
    held_out = vocabulary.held_out_combinations()
    assert vocabulary.is_held_out(held_out).all()
    assert not vocabulary.is_held_out(vocabulary.training_combinations()).any()


def test_a_caption_of_another_form_is_named():
    captions = ["a red circle grows on a blue background", "a dog runs"]
    with pytest.raises(ValueError, match="a dog runs") as error:
        vocabulary.parse_captions(captions)
    assert "1 captions" in str(error.value)


@pytest.mark.parametrize("row", [(0, 2, 4), (9, 2, 4, 0), (0, 2, 4, -1)])
def test_attributes_out_of_range_are_refused(row):
    with pytest.raises(ValueError, match="expected four attributes"):
        vocabulary.caption_of(row)
