"""The demo's text encoder: fixed word vectors plus positions, no parameters.

A word's vector is 128 signs taken from its SHA-256 digest, so it is the same on every
machine and exact in every float format, and two words are nearly orthogonal. Positions
are added to every token, because CogVideoX rotates video tokens only: without them "red
circle on blue" and "blue circle on red" would be the same set of tokens.
"""

import functools
import hashlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sixbit_jax.demo import vocabulary

TEXT_DIM = 128
PADDING = ""


def encode_captions(captions: Sequence[str]) -> Float[np.ndarray, "captions 16 128"]:
    """Embed captions with fixed word vectors.

    Args:
        captions: captions over the demo's vocabulary. An empty caption gives the null
            embedding, the condition of the unguided branch.

    Returns:
        float32 `[captions, 16, 128]`: word vector (entries +-1) plus the sinusoidal
        position; the tokens after the last word hold the padding vector.

    Raises:
        TypeError: one string was given in place of a list.
        ValueError: a caption has unknown words or more than 16.
    """
    if isinstance(captions, str):
        raise TypeError(f"expected a list of captions, got the string {captions!r}")
    index = {word: i for i, word in enumerate(_token_words())}
    ids = np.zeros((len(captions), vocabulary.MAX_WORDS), np.int32)
    problems = []
    for row, caption in enumerate(captions):
        found = vocabulary.words(caption)
        unknown = [word for word in found if word not in index]
        if unknown:
            problems.append(f"caption {row} {caption!r} has unknown words {unknown}")
        elif len(found) > vocabulary.MAX_WORDS:
            problems.append(f"caption {row} {caption!r} has {len(found)} words")
        else:
            ids[row, : len(found)] = [index[word] for word in found]
    if problems:
        raise ValueError(
            f"{'; '.join(problems)}; expected at most {vocabulary.MAX_WORDS} words of "
            f"{', '.join(vocabulary.vocabulary())}"
        )
    return _word_vectors()[ids] + _positions()


def encode_attributes(
    attributes: Int[Array, "batch 4"], dropped: Bool[Array, " batch"] | None = None
) -> Float[Array, "batch 16 128"]:
    """Embed the captions of attribute vectors; may be traced.

    Args:
        attributes: int `[batch, 4]` as in `vocabulary.combinations`.
        dropped: where true, the null embedding is returned instead.

    Returns:
        The same values as `encode_captions` of the attributes' captions.
    """
    shape, colour, background, motion = jnp.moveaxis(jnp.asarray(attributes), -1, 0)
    ids = jnp.asarray(_token_table())[shape, colour, background, motion]
    if dropped is not None:
        ids = jnp.where(dropped[:, None], 0, ids)
    return jnp.asarray(_word_vectors())[ids] + jnp.asarray(_positions())


def _token_words() -> tuple[str, ...]:
    return (PADDING, *vocabulary.vocabulary())


@functools.cache
def _word_vectors() -> Float[np.ndarray, "words 128"]:
    digests = [hashlib.sha256(word.encode()).digest() for word in _token_words()]
    bits = np.unpackbits(np.frombuffer(b"".join(digests), np.uint8)).reshape(-1, 256)
    return bits[:, :TEXT_DIM].astype(np.float32) * 2 - 1


@functools.cache
def _positions() -> Float[np.ndarray, "16 128"]:
    half = TEXT_DIM // 2
    frequency = np.exp(-np.log(100.0) * np.arange(half) / half)
    angle = np.arange(vocabulary.MAX_WORDS)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


@functools.cache
def _token_table() -> Int[np.ndarray, "shapes colours colours motions 16"]:
    index = {word: i for i, word in enumerate(_token_words())}
    sizes = (
        len(vocabulary.SHAPES),
        len(vocabulary.COLOUR_NAMES),
        len(vocabulary.COLOUR_NAMES),
        len(vocabulary.MOTION_NAMES),
    )
    table = np.zeros((*sizes, vocabulary.MAX_WORDS), np.int32)
    for row in vocabulary.combinations():
        found = vocabulary.words(vocabulary.caption_of(row))
        table[(*row, slice(len(found)))] = [index[word] for word in found]
    return table
