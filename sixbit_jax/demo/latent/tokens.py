"""The small pipeline's tokenizer: T5's, with a vocabulary of the grammar's words.

Every word of the grammar is one piece; other words are spelt in letters. The files are
those of transformers' `T5TokenizerFast`.
"""

import json
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import Unigram
from tokenizers.processors import TemplateProcessing

from sixbit_jax.demo.latent import captions

MAX_TOKENS = 48
_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"
_MARK = "\N{LOWER ONE EIGHTH BLOCK}"


def pieces() -> list[tuple[str, float]]:
    """Pieces and their log probabilities: special ones, words, marks, letters."""
    result = [(_PAD, 0.0), (_END, 0.0), (_UNKNOWN, 0.0)]
    result += [(_MARK + word, -4.0) for word in captions.words()]
    result += [(mark, -5.0) for mark in ",.;:!?'\"-()"]
    known = {piece for piece, _ in result}
    letters = string.ascii_lowercase + string.ascii_uppercase + string.digits
    result += [(letter, -12.0) for letter in letters if letter not in known]
    return [*result, (_MARK, -6.0)]


def write(folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`.

    Args:
      folder: an existing directory.
    """
    tokenizer = Tokenizer(Unigram(pieces(), unk_id=2, byte_fallback=False))
    tokenizer.add_special_tokens([_PAD, _END, _UNKNOWN])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_MARK, "always")
    tokenizer.decoder = decoders.Metaspace(_MARK, "always")
    tokenizer.post_processor = TemplateProcessing(
        single=["$A", _END], special_tokens=[(_END, 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "T5Tokenizer",
        "eos_token": _END,
        "pad_token": _PAD,
        "unk_token": _UNKNOWN,
        "extra_ids": 0,
        "model_max_length": MAX_TOKENS,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text)


def encode(texts: Sequence[str]) -> Int[np.ndarray, "texts 48"]:
    """Token ids of captions of the grammar, with the end and padding; without files.

    Training's own way: a table of words. A test holds it to the tokenizer.

    Raises:
      ValueError: a caption has words that are not of the grammar, or too many.
    """
    index = {piece: number for number, (piece, _) in enumerate(pieces())}
    known: dict[str, list[int]] = {}
    ids = np.zeros((len(texts), MAX_TOKENS), np.int32)
    for row, text in enumerate(texts):
        found: list[int] = []
        for part in text.split():
            if part not in known:
                word = part.rstrip(",")
                if _MARK + word not in index:
                    raise ValueError(
                        f"caption {text!r}: {word!r} is not of the grammar"
                    )
                known[part] = [index[_MARK + word]] + [index[","]] * (part != word)
            found += known[part]
        if len(found) >= MAX_TOKENS:
            raise ValueError(f"caption {text!r} has {len(found)} tokens")
        ids[row, : len(found) + 1] = [*found, 1]
    return ids
