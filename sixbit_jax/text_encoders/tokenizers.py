"""Prompts to token ids, with what did not fit said."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32

from sixbit_jax.text_encoders.tokenizer_files import Built, TokenizerError, build


@dataclass(frozen=True)
class PromptTokens:
    """Prompts as an encoder takes them.

    Attributes:
      ids: token ids, padded on the right.
      mask: true for tokens, false for padding.
      cut: the end of each prompt that did not fit; empty if all of it did.
    """

    ids: Int32[np.ndarray, "batch T"]
    mask: Bool[np.ndarray, "batch T"]
    cut: tuple[str, ...]


class PromptTokenizer:
    """The tokenizer of a folder. Special tokens are added as its model wants them."""

    def __init__(self, built: Built, folder: Path):
        self._tokenizer, self.family = built.tokenizer, built.family
        self.pad_id, self.folder = built.pad_id, folder
        self._num_special = self._tokenizer.num_special_tokens_to_add(False)

    @property
    def num_ids(self) -> int:
        """One more than the largest id."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def check_fits(self, rows: int) -> None:
        """Refuses an embedding table that this tokenizer may read beyond.

        Args:
          rows: the rows of the table; more than there are ids is usual.

        Raises:
          TokenizerError: for fewer rows than ids.
        """
        if self.num_ids > rows:
            raise TokenizerError(
                f"{self.folder}: expected at most the {rows} ids of the text encoder's "
                f"table, found {self.num_ids}; this tokenizer is another model's"
            )

    def __call__(
        self, prompts: Sequence[str], *, max_length: int, template: str = "{}"
    ) -> PromptTokens:
        """Tokenizes, cuts and pads.

        Args:
          prompts: any text; an empty one is allowed.
          max_length: tokens of a row, special ones included, T.
          template: text around each prompt, which stands for "{}".

        Raises:
          TypeError: if the prompts are not a sequence of str.
          ValueError: for a length without room for a token, a template without "{}",
            and text that is no Unicode.
        """
        _check(prompts)
        if max_length <= self._num_special:
            raise ValueError(
                f"max_length: expected at least {self._num_special + 1}, found "
                f"{max_length}"
            )
        before, found, after = template.partition("{}")
        if not found:
            raise ValueError(f"template: expected '{{}}' in it, found {template!r}")
        ids = np.full((len(prompts), max_length), self.pad_id, np.int32)
        mask = np.zeros(ids.shape, bool)
        cut = []
        self._tokenizer.enable_truncation(max_length)
        try:
            for row, prompt in enumerate(prompts):
                # One by one: a few prompts are not worth the library's threads.
                encoding = self._tokenizer.encode(before + prompt + after)
                ids[row, : len(encoding.ids)] = encoding.ids
                mask[row, : len(encoding.ids)] = True
                kept = len(prompt)
                if encoding.overflowing:
                    kept = max(0, _end(encoding) - len(before))
                cut.append(prompt[kept:])
        finally:
            self._tokenizer.no_truncation()
        return PromptTokens(ids, mask, tuple(cut))


def _end(encoding: object) -> int:
    """Where in the text the last token ends that is not a special one's addition."""
    offsets = encoding.offsets  # pyrefly: ignore[missing-attribute]
    return max((end for _, end in offsets), default=0)


def _check(prompts: Sequence[str]) -> None:
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise TypeError(
            f"prompts: expected a sequence of str, found a {type(prompts).__name__}"
        )
    problems = [
        f"prompt {index}: expected a str, found a {type(prompt).__name__}"
        for index, prompt in enumerate(prompts)
        if not isinstance(prompt, str)
    ]
    if problems:
        raise TypeError("\n".join(problems))
    for index, prompt in enumerate(prompts):
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"prompt {index}: expected Unicode text, found a lone surrogate at "
                f"character {error.start}"
            ) from error


def load_tokenizer(folder: str | os.PathLike) -> PromptTokenizer:
    """The tokenizer of a folder of a diffusers root (`tokenizer/`, `tokenizer_2/`).

    Reads T5's and UMT5's (`spiece.model` or `tokenizer.json`), CLIP's (`vocab.json`
    with `merges.txt`, or `tokenizer.json`), and any other `tokenizer.json` as it is.
    Gives the ids of transformers 5.

    Raises:
      TokenizerError: if files are missing, damaged, or of another kind.
    """
    path = Path(folder)
    return PromptTokenizer(build(path), path)


__all__ = ["PromptTokenizer", "PromptTokens", "TokenizerError", "load_tokenizer"]
