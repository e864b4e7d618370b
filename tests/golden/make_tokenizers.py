"""Trains small tokenizers and stores the ids that transformers gives with them.

Run from the repository root: `python -m tests.golden.make_tokenizers`.
"""

import io
import json
import lzma
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
import transformers
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import (
    DEFAULT_PROMPT_TEMPLATE,
)
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from tests.golden.text_strings import SENTENCES, crc_of_ids, crc_of_text, strings
from tests.golden.tokenizer_cases import FOLDER, MAX_LENGTH, SHOWN, unpack

CLIP_SPECIAL = ["<|startoftext|>", "<|endoftext|>"]
LLAMA_SPECIAL = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|eot_id|>", "<pad>"),
]
LLAMA_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write(name: str, files: dict[str, Any]) -> None:
    """Writes a folder; large files are packed."""
    folder = FOLDER / name
    folder.mkdir()
    for file, content in files.items():
        if not isinstance(content, bytes):
            text = content if isinstance(content, str) else json.dumps(content)
            content = text.encode("utf-8")
        if len(content) > 4096:
            file, content = f"{file}.xz", lzma.compress(content, preset=9)
        equal = [f for f in FOLDER.glob(f"*/{file}") if f.read_bytes() == content]
        if len(content) > 4096 and equal:
            file, content = f"{file}.same", equal[0].parent.name.encode()
        (folder / file).write_bytes(content)


def train_spiece(byte_fallback: bool) -> bytes:
    """A unigram model with T5's special ids and normalization."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_writer=model,
        model_type="unigram",
        vocab_size=900 if byte_fallback else 600,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=byte_fallback,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def added(text: str, index: int, **changes: Any) -> dict[str, Any]:
    """An entry of added_tokens_decoder."""
    values = {
        "content": text,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    return {str(index): values | changes}


def t5_config(size: int, extra_ids: int) -> dict[str, Any]:
    """The tokenizer_config.json of a published T5 or UMT5."""
    decoder: dict[str, Any] = {}
    for index, text in enumerate(("<pad>", "</s>", "<unk>")):
        decoder |= added(text, index)
    names = [f"<extra_id_{index}>" for index in range(extra_ids)]
    for index, text in enumerate(reversed(names)):
        decoder |= added(text, size + index, lstrip=True, rstrip=True)
    return {
        "tokenizer_class": "T5Tokenizer",
        "added_tokens_decoder": decoder,
        "additional_special_tokens": names,
        "extra_ids": extra_ids,
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "model_max_length": 226,
    }


def make_t5() -> None:
    """Folders of T5 (CogVideoX), old and new, and of UMT5 (Wan)."""
    spiece = train_spiece(False)
    size = sentencepiece.SentencePieceProcessor(model_proto=spiece).get_piece_size()
    write("t5_bare", {"spiece.model": spiece})
    write("t5", {"spiece.model": spiece, "tokenizer_config.json": t5_config(size, 100)})
    names = [f"<extra_id_{index}>" for index in range(100)]
    ids = {text: size + 99 - index for index, text in enumerate(names)}
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write(
        "t5_old",
        {
            "spiece.model": spiece,
            "special_tokens_map.json": special | {"additional_special_tokens": names},
            "added_tokens.json": ids,
            "tokenizer_config.json": special | {"tokenizer_class": "T5Tokenizer"},
        },
    )
    spiece = train_spiece(True)
    size = sentencepiece.SentencePieceProcessor(model_proto=spiece).get_piece_size()
    write("umt5_spiece", {"spiece.model": spiece})
    with tempfile.TemporaryDirectory() as folder:
        source = unpack("umt5_spiece", Path(folder))
        config = t5_config(size, 30)
        (source / "tokenizer_config.json").write_text(json.dumps(config))
        loaded = transformers.T5TokenizerFast.from_pretrained(source)
        saved = loaded.backend_tokenizer.to_str()
    shutil.rmtree(FOLDER / "umt5_spiece")
    write("umt5", {"tokenizer.json": saved, "tokenizer_config.json": config})


def train_bpe(model: Any, split: Any, special: list[str], **options: Any) -> Any:
    """A byte-level BPE tokenizer."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = split
    trainer = trainers.BpeTrainer(
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        **options,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def make_clip() -> None:
    """CLIP's two files, and the same as one tokenizer.json."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained = train_bpe(
        models.BPE(end_of_word_suffix="</w>"),
        split,
        [],
        vocab_size=900,
        end_of_word_suffix="</w>",
    )
    merges = [tuple(m) for m in json.loads(trained.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # CLIP's order: bytes, bytes at the end of a word, merges, the two special tokens.
    listed = [*alphabet, *(f"{c}</w>" for c in alphabet), *map("".join, merges)]
    vocabulary = {text: index for index, text in enumerate(dict.fromkeys(listed))}
    for text in CLIP_SPECIAL:
        vocabulary[text] = len(vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    end = {"content": CLIP_SPECIAL[1], "normalized": True}
    end |= {"lstrip": False, "rstrip": False, "single_word": False}
    start = end | {"content": CLIP_SPECIAL[0]}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    named = {"bos_token": start, "eos_token": end, "unk_token": end}
    files = {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(lines),
        "special_tokens_map.json": named | {"pad_token": CLIP_SPECIAL[1]},
    }
    write("clip", files | {"tokenizer_config.json": config})
    # A published one: the padding token of the second encoder of some roots is "!".
    decoder = added(CLIP_SPECIAL[0], vocabulary[CLIP_SPECIAL[0]], normalized=True)
    decoder |= added(CLIP_SPECIAL[1], vocabulary[CLIP_SPECIAL[1]])
    with tempfile.TemporaryDirectory() as folder:
        loaded = transformers.CLIPTokenizer.from_pretrained(
            unpack("clip", Path(folder))
        )
        saved = loaded.backend_tokenizer.to_str()
    config |= {"added_tokens_decoder": decoder, "pad_token": "!"}
    write("clip_json", {"tokenizer.json": saved, "tokenizer_config.json": config})


def make_llama() -> None:
    """A Llama-3 tokenizer.json."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained = train_bpe(
        models.BPE(ignore_merges=True), split, LLAMA_SPECIAL, vocab_size=900
    )
    trained.decoder = decoders.ByteLevel()
    begin = LLAMA_SPECIAL[0]
    trained.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=[begin, "$A"],
                special_tokens=[(begin, trained.token_to_id(begin))],
            ),
        ]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin,
        "eos_token": "<|end_of_text|>",
        "pad_token": "<pad>",
        "padding_side": "right",
    }
    write(
        "llama", {"tokenizer.json": trained.to_str(), "tokenizer_config.json": config}
    )


def store(name: str, prompts: list[str]) -> dict[str, Any]:
    """Stores what transformers makes of the prompts; returns what to print."""
    with tempfile.TemporaryDirectory() as folder:
        path = unpack(name, Path(folder))
        kind = transformers.AutoTokenizer
        if not (path / "tokenizer_config.json").is_file():
            # No class is named: diffusers takes the one of model_index.json.
            kind = transformers.T5TokenizerFast
        tokenizer = kind.from_pretrained(path)
        encoded = tokenizer(
            prompts,
            padding="max_length",
            max_length=MAX_LENGTH,
            truncation=True,
            add_special_tokens=True,
        )
        ids = np.array(encoded["input_ids"], np.int32)
        lengths = np.array(encoded["attention_mask"]).sum(1)
        plain = {}
        if name == "t5_bare":
            model = sentencepiece.SentencePieceProcessor(str(path / "spiece.model"))
            rows = np.zeros_like(ids)
            for row, prompt in zip(rows, prompts, strict=True):
                found = [*model.encode(prompt)[: MAX_LENGTH - 1], 1]
                row[: len(found)] = found
            crcs = [crc_of_ids(row) for row in rows]
            plain = {"sentencepiece": np.array(crcs, np.uint32)}
    np.savez_compressed(
        FOLDER / f"{name}.npz",
        **plain,
        checksums=np.array([crc_of_ids(row) for row in ids], np.uint32),
        lengths=lengths.astype(np.uint8),
        shown=ids[SHOWN].astype(np.uint16),
    )
    return {
        "tokenizer": name,
        "class": type(tokenizer).__name__,
        "size": len(tokenizer),
        "full": int((lengths == MAX_LENGTH).sum()),
    }


def main() -> None:
    """Make every tokenizer and its ids."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    make_t5()
    make_clip()
    make_llama()
    prompts = strings()
    for folder in sorted(path for path in FOLDER.iterdir() if path.is_dir()):
        print(json.dumps(store(folder.name, prompts)))
    np.savez_compressed(
        FOLDER / "cleaned.npz",
        wan=np.array([crc_of_text(prompt_clean(p)) for p in prompts], np.uint32),
        prompts=np.array([crc_of_text(p) for p in prompts], np.uint32),
        hunyuan=np.array(
            [
                crc_of_text(DEFAULT_PROMPT_TEMPLATE["template"]),
                DEFAULT_PROMPT_TEMPLATE["crop_start"],
            ],
            np.uint32,
        ),
    )


if __name__ == "__main__":
    main()
