"""Captions of the small world, and their tokens."""

from pathlib import Path

import numpy as np
import pytest

from sixbit_jax.demo.latent import captions, tokens, world
from sixbit_jax.text_encoders.tokenizers import load_tokenizer


def some(count: int) -> tuple[np.ndarray, list[str]]:
    known = world.combinations()
    rows = known[np.random.default_rng(3).integers(len(known), size=count)]
    return rows, captions.captions(rows, seed=4)


def test_captions_name_every_attribute():
    rows, texts = some(300)
    for row, text in zip(rows, texts, strict=True):
        found = set(captions.split_words(text))
        for column, table in ((0, captions.SHAPES), (3, captions.SHAPES)):
            assert found & set(table[world.SHAPES[row[column]]])
        for column in (1, 4):
            assert found & set(captions.COLOURS[world.COLOUR_NAMES[row[column]]])
        assert any(m in text for m in captions.MOTIONS[world.MOTIONS[row[2]]])
        assert found & set(captions.TEXTURES[world.TEXTURES[row[5]]])
        assert found & set(captions.TONES[world.TONES[row[6]]])
        views = captions.CAMERAS[world.CAMERAS[row[7]]]
        assert any(view in text for view in views)


def test_thousands_of_captions_are_distinct():
    _, texts = some(5000)
    assert len(set(texts)) > 4990
    rows = np.repeat(world.combinations()[:1], 200, axis=0)
    assert len(set(captions.captions(rows, seed=0))) > 190


def test_the_moving_object_is_the_one_of_the_verb():
    row = [0, 0, 0, 1, 4, 0, 0, 1]
    for text in captions.captions(np.asarray([row] * 50), seed=1):
        before = text.split(next(m for m in captions.MOTIONS["left"] if m in text))[0]
        last = [w for w in captions.split_words(before) if w in _kinds()][-1]
        assert last in captions.SHAPES["ball"]


def _kinds() -> set[str]:
    return {word for words in captions.SHAPES.values() for word in words}


def test_unknown_words_are_named():
    text = "A fluffy red ball moves left, behind the Sofa."
    assert captions.unknown_words(text) == ["fluffy", "sofa"]


def test_the_table_of_words_is_the_tokenizer(tmp_path: Path):
    tokens.write(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    _, texts = some(200)
    found = tokenizer([*texts, ""], max_length=tokens.MAX_TOKENS)
    np.testing.assert_array_equal(found.ids, tokens.encode([*texts, ""]))
    assert not any(found.cut)
    tokenizer.check_fits(256)


def test_words_beyond_the_grammar_are_spelt(tmp_path: Path):
    tokens.write(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer(["a cat"], max_length=tokens.MAX_TOKENS).ids[0]
    # A mark of the word, then its letters; none is unknown.
    assert (ids[:6] > 2).all() or ids[5] == 1
    assert 2 not in ids
    with pytest.raises(ValueError, match="'cat' is not of the grammar"):
        tokens.encode(["a cat"])
