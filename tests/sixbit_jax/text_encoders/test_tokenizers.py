"""Token ids against transformers and sentencepiece, and what is refused."""

import json
import shutil
from itertools import pairwise
from unicodedata import category

import numpy as np
import pytest

from sixbit_jax.text_encoders import sentencepiece_file
from sixbit_jax.text_encoders.prompts import (
    HUNYUAN_VIDEO_CROP,
    HUNYUAN_VIDEO_TEMPLATE,
    clean_wan_prompt,
)
from sixbit_jax.text_encoders.tokenizers import TokenizerError, load_tokenizer
from tests.golden import tokenizer_cases
from tests.golden.text_strings import COUNT, crc_of_ids, crc_of_text, strings

PROMPTS = strings()
FAMILIES = {"t5": "T5", "umt5": "T5", "clip": "CLIP", "llama": ""}
# Where sentencepiece itself and the T5 tokenizer of transformers 5 differ: literal
# special tokens, the character that stands for a space, and spaces that only one of
# them takes for such.
_DIFFERENT = ("</s>", "<pad>", "<unk>", "<extra_id_", "\u2581", "\x85", "\x1c")


def _has_anything_special(prompt):
    # `tokenizers` normalizes whole graphemes: a wide space that carries a mark stays.
    marked = any(
        first in "\xa0\u2009\u3000\u1680"
        and (second == "\u200d" or category(second)[0] == "M")
        for first, second in pairwise(prompt)
    )
    return marked or any(text in prompt for text in _DIFFERENT)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {n: tokenizer_cases.unpack(n, root) for n in tokenizer_cases.names()}


@pytest.fixture
def copy(folders, tmp_path):
    """A copy of a tokenizer folder that a test may damage."""
    return lambda name: shutil.copytree(folders[name], tmp_path / "tokenizer")


def test_prompts_are_the_ones_that_the_golden_ids_were_made_from():
    stored = tokenizer_cases.golden("cleaned")["prompts"]
    assert len(PROMPTS) == COUNT == 3000
    assert [crc_of_text(p) for p in PROMPTS] == stored.tolist()


@pytest.mark.parametrize("name", tokenizer_cases.names())
def test_ids_equal_transformers_on_every_prompt(name, folders):
    expected = tokenizer_cases.golden(name)
    tokenizer = load_tokenizer(folders[name])
    assert tokenizer.family == FAMILIES[name.partition("_")[0]]
    found = tokenizer(PROMPTS, max_length=tokenizer_cases.MAX_LENGTH)
    assert found.ids.dtype == np.int32
    assert np.array_equal(found.ids[tokenizer_cases.SHOWN], expected["shown"])
    assert [crc_of_ids(r) for r in found.ids] == expected["checksums"].tolist()
    assert np.array_equal(found.mask.sum(1), expected["lengths"])
    # Padding stands on the right.
    assert (np.diff(found.mask.astype(int), axis=1) <= 0).all()


def test_t5_ids_equal_sentencepiece_where_the_prompt_holds_nothing_special(folders):
    expected = tokenizer_cases.golden("t5_bare")["sentencepiece"]
    plain = [i for i, prompt in enumerate(PROMPTS) if not _has_anything_special(prompt)]
    assert len(plain) > 2000
    tokenizer = load_tokenizer(folders["t5_bare"])
    found = tokenizer([PROMPTS[i] for i in plain], max_length=64)
    assert [crc_of_ids(r) for r in found.ids] == expected[plain].tolist()


def test_wan_cleaning_equals_diffusers_on_every_prompt():
    stored = tokenizer_cases.golden("cleaned")["wan"]
    assert [crc_of_text(clean_wan_prompt(p)) for p in PROMPTS] == stored.tolist()
    assert clean_wan_prompt("  a &amp;amp; b \n  schÃ¶n ") == "a & b schön"


def test_hunyuan_video_template_is_the_published_one():
    stored = tokenizer_cases.golden("cleaned")["hunyuan"]
    found = [crc_of_text(HUNYUAN_VIDEO_TEMPLATE), HUNYUAN_VIDEO_CROP]
    assert found == stored.tolist()


@pytest.mark.parametrize("name", tokenizer_cases.names())
def test_what_does_not_fit_is_cut_and_said(name, folders):
    tokenizer = load_tokenizer(folders[name])
    long = "A red kite over a green hill. " * 30
    found = tokenizer([long, "a kite", ""], max_length=32)
    assert found.ids.shape == (3, 32)
    assert found.mask[0].all()
    assert found.cut[1:] == ("", "")
    assert found.cut[0]
    assert long.endswith(found.cut[0])
    whole = tokenizer([long], max_length=600)
    assert whole.cut == ("",)
    assert np.array_equal(found.ids[0, :31], whole.ids[0, :31])
    # A word may be cut in its middle and then be other tokens, but about as many.
    kept = tokenizer([long.removesuffix(found.cut[0])], max_length=600)
    assert abs(kept.mask.sum() - 32) <= 2


def test_a_prompt_that_just_fits_is_not_cut(folders):
    tokenizer = load_tokenizer(folders["t5"])
    length = int(tokenizer(["a kite"], max_length=32).mask.sum())
    assert tokenizer(["a kite"], max_length=length).cut == ("",)
    assert tokenizer(["a kite"], max_length=length - 1).cut != ("",)


def test_of_a_template_only_the_prompt_is_said_to_be_cut(folders):
    tokenizer = load_tokenizer(folders["llama"])
    whole = tokenizer(["a kite"], max_length=400, template=HUNYUAN_VIDEO_TEMPLATE)
    length = int(whole.mask.sum())
    plain = HUNYUAN_VIDEO_TEMPLATE.replace("{}", "a kite")
    assert np.array_equal(whole.ids, tokenizer([plain], max_length=400).ids)
    cut = tokenizer(["a kite"], max_length=length - 2, template=HUNYUAN_VIDEO_TEMPLATE)
    assert cut.cut[0]
    assert "a kite".endswith(cut.cut[0])
    ends = tokenizer(["a kite"], max_length=length - 1, template=HUNYUAN_VIDEO_TEMPLATE)
    assert ends.cut == ("",)
    with pytest.raises(ValueError, match=r"template: expected '\{\}' in it"):
        tokenizer(["a"], max_length=9, template="no place")


def test_an_empty_prompt_is_its_special_tokens_and_padding(folders):
    t5 = load_tokenizer(folders["t5"])([""], max_length=5)
    assert t5.ids.tolist() == [[1, 0, 0, 0, 0]]
    assert t5.mask.tolist() == [[True, False, False, False, False]]
    clip = load_tokenizer(folders["clip"])([""], max_length=4)
    assert clip.mask.sum() == 2
    assert load_tokenizer(folders["t5"])([], max_length=5).ids.shape == (0, 5)


def test_prompts_that_are_not_text_are_refused(folders):
    tokenizer = load_tokenizer(folders["t5"])
    with pytest.raises(TypeError, match="expected a sequence of str, found a str"):
        tokenizer("a kite", max_length=8)
    with pytest.raises(TypeError) as error:
        tokenizer(["a", 3, None], max_length=8)
    assert "prompt 1: expected a str, found a int" in str(error.value)
    assert "prompt 2: expected a str, found a NoneType" in str(error.value)
    with pytest.raises(ValueError, match=r"prompt 1: .* lone surrogate at character 2"):
        tokenizer(["a", "ab\ud800"], max_length=8)
    with pytest.raises(ValueError, match="max_length: expected at least 2, found 1"):
        tokenizer(["a"], max_length=1)


def test_a_tokenizer_with_more_ids_than_the_table_has_rows_is_refused(folders):
    tokenizer = load_tokenizer(folders["t5"])
    tokenizer.check_fits(tokenizer.num_ids)
    with pytest.raises(TokenizerError, match=f"found {tokenizer.num_ids}"):
        tokenizer.check_fits(tokenizer.num_ids - 1)


def test_missing_files_are_named(tmp_path, copy):
    with pytest.raises(TokenizerError, match=r"expected spiece.model.*found nothing"):
        load_tokenizer(tmp_path / "absent")
    folder = copy("clip")
    (folder / "merges.txt").unlink()
    with pytest.raises(TokenizerError) as error:
        load_tokenizer(folder)
    assert "merges.txt with vocab.json or tokenizer.json" in str(error.value)
    assert "CLIPTokenizer" in str(error.value)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("t5", "spiece.model", b"not a model", "expected a SentencePiece model"),
        ("t5", "spiece.model", b"", "found no pieces"),
        ("t5", "tokenizer_config.json", b"{", "expected a JSON object"),
        ("t5", "tokenizer_config.json", b"[1]", "expected a JSON object, found a list"),
        ("umt5", "tokenizer.json", b"{}", "expected a Unigram model"),
        ("llama", "tokenizer.json", b'{"a": 1}', "file of the tokenizers library"),
        ("clip", "vocab.json", b'{"a": 0}', "expected a vocabulary and its merges"),
        ("llama", "tokenizer_config.json", b"{}", "expected a pad_token"),
        ("clip", "merges.txt", b"a b c", "expected a vocabulary and its merges"),
        ("clip", "merges.txt", b"\xff\xfe", "values in them that are none"),
        (
            "t5",
            "tokenizer_config.json",
            b'{"added_tokens_decoder": {"x": 3}}',
            "values in them that are none",
        ),
    ],
)
def test_damaged_files_are_named(copy, name, file, content, message):
    folder = copy(name)
    (folder / file).write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as error:
        load_tokenizer(folder)
    assert str(folder) in str(error.value)


def test_a_truncated_sentencepiece_model_is_refused(copy):
    folder = copy("t5")
    whole = (folder / "spiece.model").read_bytes()
    (folder / "spiece.model").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TokenizerError, match="the beginning of one"):
        load_tokenizer(folder)


def test_a_tokenizer_of_another_kind_is_refused(copy, folders):
    folder = copy("t5")
    (folder / "spiece.model").unlink()
    shutil.copy(folders["llama"] / "tokenizer.json", folder)
    with pytest.raises(
        TokenizerError, match=r"expected a Unigram model .* found 'BPE'"
    ):
        load_tokenizer(folder)


def test_a_unigram_model_with_other_ids_than_t5_is_refused(copy):
    folder = copy("umt5")
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["vocab"].reverse()
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(TokenizerError, match="which begin with <pad>, </s>, <unk>"):
        load_tokenizer(folder)


def test_pieces_are_read_with_scores_and_kinds(folders):
    model = sentencepiece_file.read(folders["t5_bare"] / "spiece.model")
    kinds = [piece.kind.name for piece in model.pieces[:4]]
    assert kinds == ["CONTROL", "CONTROL", "UNKNOWN", "NORMAL"]
    assert model.kind == "unigram"
    assert len(model.pieces) == 407
    assert all(piece.score < 0 for piece in model.pieces[3:])
    assert len(model.charsmap) > 200_000
