"""The fixed word embeddings."""

import jax
import numpy as np
import pytest

from sixbit_jax.demo import text, vocabulary

RED_ON_BLUE = "a red circle moves left on a blue background"
BLUE_ON_RED = "a blue circle moves left on a red background"


def test_embeddings_have_the_same_values_on_every_machine():
    found = text.encode_captions([RED_ON_BLUE])
    assert found.shape == (1, 16, 128)
    assert found.dtype == np.float32
    # SHA-256 of "a" starts with 0xca = 11001010; position 0 adds sin(0) there.
    np.testing.assert_array_equal(found[0, 0, :8], [1, 1, -1, -1, 1, -1, 1, -1])
    np.testing.assert_array_equal(found[0, 9:], text.encode_captions([""])[0, 9:])


def test_the_order_of_words_matters_at_every_token_that_moved():
    first, second = text.encode_captions([RED_ON_BLUE, BLUE_ON_RED])
    sets = [{row.tobytes() for row in tokens} for tokens in (first, second)]
    assert len(sets[0] & sets[1]) == 14


def test_words_are_nearly_orthogonal():
    vectors = text._word_vectors()
    cosine = vectors @ vectors.T / text.TEXT_DIM - np.eye(len(vectors))
    assert np.abs(cosine).max() < 0.4


def test_traced_attributes_give_the_embeddings_of_their_captions():
    rows = vocabulary.combinations()[::7]
    captions = [vocabulary.caption_of(row) for row in rows]
    found = jax.jit(text.encode_attributes)(rows)
    np.testing.assert_array_equal(found, text.encode_captions(captions))


def test_dropped_captions_become_the_null_embedding():
    rows = vocabulary.combinations()[:2]
    found = text.encode_attributes(rows, np.array([True, False]))
    captions = ["", vocabulary.caption_of(rows[1])]
    np.testing.assert_array_equal(found, text.encode_captions(captions))


def test_unknown_words_are_all_named_with_the_vocabulary():
    with pytest.raises(ValueError, match="purple") as error:
        text.encode_captions(["a purple circle", "a red dog"])
    assert "dog" in str(error.value)
    assert "magenta" in str(error.value)


def test_long_captions_and_single_strings_are_refused():
    with pytest.raises(ValueError, match="17 words"):
        text.encode_captions(["a " * 17])
    with pytest.raises(TypeError, match="list of captions"):
        text.encode_captions(RED_ON_BLUE)
