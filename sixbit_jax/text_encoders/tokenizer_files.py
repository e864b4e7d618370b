"""Builds a `tokenizers.Tokenizer` from a folder, as transformers 5 does.

transformers 5 makes the tokenizer of a class (T5, CLIP) from the vocabulary in the
folder, whichever file holds it, with the class's own normalization and splitting; it
takes a `tokenizer.json` as it is for all others. Added tokens come from
`tokenizer_config.json`, or in old folders from `special_tokens_map.json` and
`added_tokens.json`. Where the slow T5 tokenizer (sentencepiece itself) cuts differently
(around literal special tokens and runs of spaces), this is the fast one.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.processors import RobertaProcessing, TemplateProcessing

from sixbit_jax.reading.json_file import read_json_object
from sixbit_jax.text_encoders import sentencepiece_file
from sixbit_jax.text_encoders.sentencepiece_file import PieceKind

_T5_SPECIAL = ("<pad>", "</s>", "<unk>")
_UNKNOWN_ID = 2
_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_DEFAULTS: dict[str, dict[str, Any]] = {
    "T5": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "CLIP": {
        "unk_token": "<|endoftext|>",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    },
    "": {},
}
_CLIP_SPLIT = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
# The vocabularies of 256,000 pieces have 20 MB, and a million values.
_LARGEST_JSON, _MOST_JSON_VALUES = 64 * 2**20, 4_000_000
_JSON, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_SPIECE, _VOCAB, _MERGES = "spiece.model", "vocab.json", "merges.txt"


class TokenizerError(ValueError):
    """A folder that holds no usable tokenizer."""


@dataclass(frozen=True)
class Built:
    """A tokenizer and its padding.

    Attributes:
      tokenizer: adds its special tokens itself.
      family: "T5", "CLIP", or "" for a tokenizer.json that is taken as it is.
      pad_id: id of the padding token.
    """

    tokenizer: Tokenizer
    family: str
    pad_id: int


def build(folder: Path) -> Built:
    """Builds the tokenizer of a folder.

    Raises:
      TokenizerError: if files are missing, damaged, or of another kind.
    """
    try:
        return _build(folder)
    except TokenizerError:
        raise
    except Exception as error:  # of tokenizers, and of values that are no settings
        raise TokenizerError(
            f"{folder}: expected the files of a tokenizer, found values in them that "
            f"are none ({type(error).__name__}: {error})"
        ) from error


def _build(folder: Path) -> Built:
    present = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    settings = _settings(folder, present)
    family = _family(folder, present, settings)
    settings = _DEFAULTS[family] | settings
    extra: list[Any] = list(settings.get("extra_special_tokens") or [])
    own_extra: list[Any] = list(settings.get("own_extra") or [])
    if family == "T5":
        tokenizer, own_extra = _t5(folder, present, settings)
    elif family == "CLIP":
        tokenizer = _clip(folder, present)
    else:
        tokenizer = _from_json(folder / _JSON)
    named = [settings[key] for key in _NAMED if settings.get(key) is not None]
    special = map(_special, [*named, *(extra or own_extra)])
    tokenizer.add_tokens([*settings["added"], *special])
    if family == "T5":
        eos = _content(settings["eos_token"])
        tokenizer.post_processor = TemplateProcessing(
            single=["$A", eos], special_tokens=[(eos, _id(tokenizer, eos, folder))]
        )
    elif family == "CLIP":
        ends = [
            (text, _id(tokenizer, text, folder))
            for text in (_content(settings[k]) for k in ("eos_token", "bos_token"))
        ]
        tokenizer.post_processor = RobertaProcessing(
            *ends, trim_offsets=False, add_prefix_space=False
        )
    pad = settings.get("pad_token")
    if pad is None:
        raise TokenizerError(
            f"{folder}: expected a pad_token in {_CONFIG} or special_tokens_map.json, "
            "found none"
        )
    return Built(tokenizer, family, _id(tokenizer, _content(pad), folder))


def _family(folder: Path, present: set[str], settings: Mapping[str, Any]) -> str:
    sources = {
        "T5": ({_SPIECE}, {_JSON}),
        "CLIP": ({_VOCAB, _MERGES}, {_JSON}),
        "": ({_JSON},),
    }
    named = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
    family = {"T5Tokenizer": "T5", "CLIPTokenizer": "CLIP"}.get(named)
    if family is None:
        # Without a class, the vocabulary says which it is.
        kinds = [f for f in ("T5", "CLIP") if sources[f][0] <= present and not named]
        family = kinds[0] if kinds else ""
    if not any(files <= present for files in sources[family]):
        wanted = " or ".join(" with ".join(sorted(files)) for files in sources[family])
        found = ", ".join(sorted(present)) if present else "nothing"
        if not family and not named:
            wanted = f"{_SPIECE}, {_JSON}, or {_MERGES} with {_VOCAB}"
        kind = f" for a {named}" if named else ""
        raise TokenizerError(f"{folder}: expected {wanted}{kind}, found {found}")
    return family


def _read_json(file: Path) -> dict[str, Any]:
    # UMT5's tokenizer.json has 17 MB and 256,300 pieces with scores.
    try:
        return read_json_object(file, largest=2**26, most_values=4_000_000)
    except (ValueError, OSError) as error:
        raise TokenizerError(str(error)) from error


def _settings(folder: Path, present: set[str]) -> dict[str, Any]:
    """The tokenizer config, with `added`: added tokens in the order of their ids."""
    settings = _read_json(folder / _CONFIG) if _CONFIG in present else {}
    listed = settings.pop("additional_special_tokens", None)
    if listed and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = listed
    if isinstance(settings.get("extra_special_tokens"), dict):
        # Named tokens beyond the usual ones.
        named = settings.pop("extra_special_tokens")
        settings["extra_special_tokens"] = list(named.values())
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in settings:
        for index, fields in settings["added_tokens_decoder"].items():
            added[int(index)] = AddedToken(**fields)
    else:
        _old_files(folder, present, settings, added)
    settings["added"] = [added[index] for index in sorted(added)]
    # A named token is the one of the list where both are given.
    by_text = {token.content: token for token in settings["added"]}
    for key in _NAMED:
        if settings.get(key) is not None:
            text = _content(settings[key])
            settings[key] = by_text.get(text, settings[key])
    return settings


def _old_files(
    folder: Path,
    present: set[str],
    settings: dict[str, Any],
    added: dict[int, AddedToken],
) -> None:
    if "special_tokens_map.json" in present:
        for key, value in _read_json(folder / "special_tokens_map.json").items():
            target = key
            if key == "additional_special_tokens":
                # transformers 5 hands these to the class under their old name.
                target = "own_extra"
            settings[target] = value
    if "added_tokens.json" in present:
        special = {_content(settings[k]) for k in _NAMED if settings.get(k)}
        special |= {_content(t) for t in settings.get("extra_special_tokens") or []}
        for text, index in _read_json(folder / "added_tokens.json").items():
            added[index] = AddedToken(
                text, normalized=text not in special, special=text in special
            )
    if _JSON in present:
        for fields in _read_json(folder / _JSON).get("added_tokens", []):
            values = dict(fields)
            # Taken out first: the library prints a line for a field it does not know.
            index = values.pop("id")
            added[index] = AddedToken(**values)


def _content(token: Any) -> str:
    if isinstance(token, AddedToken):
        return token.content
    return token["content"] if isinstance(token, Mapping) else str(token)


def _special(token: Any) -> AddedToken:
    if isinstance(token, AddedToken):
        return token
    if isinstance(token, Mapping):
        fields = {k: v for k, v in token.items() if k not in ("__type", "special")}
        return AddedToken(**fields, special=True)
    return AddedToken(str(token), special=True)


def _id(tokenizer: Tokenizer, text: str, folder: Path) -> int:
    found = tokenizer.token_to_id(text)
    if found is None:
        raise TokenizerError(
            f"{folder}: expected {text!r} in the vocabulary, found no such token"
        )
    return found


def _from_json(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(
            f"{file}: expected a file of the tokenizers library "
            f"({tokenizers.__version__}), found {error}"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _t5(
    folder: Path, present: set[str], settings: Mapping[str, Any]
) -> tuple[Tokenizer, list[Any]]:
    """The tokenizer without added tokens, and which extra tokens the class adds."""
    count = settings.get("extra_ids", 100)
    extra_ids = [f"<extra_id_{index}>" for index in range(count)]
    own_extra: list[Any] = list(settings.get("own_extra") or [])
    if _JSON in present:
        vocabulary, charsmap = _unigram_of_json(folder / _JSON)
        file = folder / _JSON
    else:
        file = folder / _SPIECE
        try:
            model = sentencepiece_file.read(file)
        except ValueError as error:
            raise TokenizerError(str(error)) from error
        if model.kind != "unigram":
            raise TokenizerError(
                f"{file}: expected a unigram model, found a {model.kind} model"
            )
        vocabulary = [(piece.text, piece.score) for piece in model.pieces]
        vocabulary += [(text, 0.0) for text in reversed(extra_ids)]
        charsmap = model.charsmap
        own_extra = [
            AddedToken(
                piece.text,
                normalized=False,
                special=piece.kind == PieceKind.CONTROL,
            )
            for piece in model.pieces
            if piece.kind in (PieceKind.CONTROL, PieceKind.USER_DEFINED)
        ]
    first = tuple(text for text, _ in vocabulary[:3])
    if first != _T5_SPECIAL:
        raise TokenizerError(
            f"{file}: expected the ids of T5, which begin with "
            f"{', '.join(_T5_SPECIAL)}, found {', '.join(first)}"
        )
    if not any("<extra_id_" in _content(token) for token in own_extra):
        own_extra += extra_ids
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=_UNKNOWN_ID, byte_fallback=False))
    if charsmap:
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(
                replacement="\u2581", prepend_scheme="always", split=True
            ),
        ]
    )
    return tokenizer, own_extra


def _unigram_of_json(file: Path) -> tuple[list[tuple[str, float]], bytes]:
    values = _read_json(file)
    model = values.get("model") or {}
    vocabulary = model.get("vocab")
    if model.get("type", "Unigram") != "Unigram" or not isinstance(vocabulary, list):
        raise TokenizerError(
            f"{file}: expected a Unigram model for a T5 tokenizer, found "
            f"{model.get('type')!r}"
        )
    steps = values.get("normalizer") or {}
    steps = steps.get("normalizers", [steps])
    maps = [s["precompiled_charsmap"] for s in steps if s.get("type") == "Precompiled"]
    charsmap = base64.b64decode(maps[0]) if maps and maps[0] else b""
    return [(text, score) for text, score in vocabulary], charsmap


def _clip(folder: Path, present: set[str]) -> Tokenizer:
    options: dict[str, Any] = {
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "</w>",
        "fuse_unk": False,
        "unk_token": "<|endoftext|>",
    }
    if _JSON in present:
        file = folder / _JSON
        stored = _read_json(file).get("model") or {}
        if stored.get("type", "BPE") != "BPE":
            raise TokenizerError(
                f"{file}: expected a BPE model for a CLIP tokenizer, found "
                f"{stored['type']!r}"
            )
        vocabulary, merges = (
            stored.get("vocab") or {},
            _pairs(stored.get("merges") or []),
        )
    else:
        file = folder / _VOCAB
        vocabulary = _read_json(file)
        lines = (folder / _MERGES).read_text(encoding="utf-8").splitlines()
        merges = _pairs([x for x in lines if x and not re.match("#version", x)])
    try:
        tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, **options))
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(
            f"{file}: expected a vocabulary and its merges, found {error}"
        ) from error
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def _pairs(merges: Sequence[Any]) -> list[Any]:
    """Pairs, from either way of writing them; the library refuses other tuples."""
    return [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
