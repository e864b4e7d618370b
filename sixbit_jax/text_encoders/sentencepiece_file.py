"""Reads a SentencePiece model (`spiece.model`): its pieces and its normalization.

The file is a protocol buffer message of few kinds of fields. Reading them here needs no
SentencePiece library: `tokenizers` runs the model, as it does in transformers.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Field numbers of sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_KIND = 1, 2, 3
_MODEL_KIND = 3
_CHARSMAP = 2
_MODEL_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


class PieceKind(IntEnum):
    """What a piece is, as the file numbers it."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """One row of the vocabulary.

    Attributes:
      text: the piece, with U+2581 for a space.
      score: its log probability.
      kind: what it is.
    """

    text: str
    score: float
    kind: PieceKind


@dataclass(frozen=True)
class SentencePieceModel:
    """What a tokenizer needs of a file.

    Attributes:
      kind: "unigram", "bpe", "word" or "char".
      pieces: the vocabulary in the order of ids.
      charsmap: compiled normalization rules, maybe empty.
    """

    kind: str
    pieces: tuple[Piece, ...]
    charsmap: bytes


def read(path: Path) -> SentencePieceModel:
    """Reads a file.

    Raises:
      ValueError: if it is not a whole SentencePiece model.
    """
    content = path.read_bytes()
    pieces, kind, charsmap = [], 1, b""
    try:
        for number, value in _fields(content):
            if number == _PIECES:
                pieces.append(_piece(value))
            elif number == _TRAINER:
                kind = dict(_fields(value)).get(_MODEL_KIND, 1)
            elif number == _NORMALIZER:
                charsmap = dict(_fields(value)).get(_CHARSMAP, b"")
        found = SentencePieceModel(_MODEL_KINDS[kind], tuple(pieces), bytes(charsmap))
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise ValueError(
            f"{path}: expected a SentencePiece model, found {len(content)} bytes of "
            "another kind or the beginning of one"
        ) from error
    if not pieces:
        raise ValueError(
            f"{path}: expected a SentencePiece model, found no pieces in it"
        )
    return found


def _piece(message: bytes) -> Piece:
    values = dict(_fields(message))
    score = struct.unpack("<f", values.get(_PIECE_SCORE, b"\0\0\0\0"))[0]
    kind = PieceKind(values.get(_PIECE_KIND, PieceKind.NORMAL))
    return Piece(values[_PIECE_TEXT].decode("utf-8"), score, kind)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and raw value (int or bytes) of each field of a message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if number == 0 or at + size > len(message):
            raise ValueError("the message ends inside a field")
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("the message ends inside a number")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
