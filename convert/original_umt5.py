"""UMT5's encoder under the key names of Wan's authors (`models_t5_umt5-xxl-enc-*.pth`).

Linears and norms are those of transformers; the gate of the feed-forward is a module of
its own. Files without a config.json say all but two numbers by their shapes: positions
further apart than 128 share a bucket, and norms add 1e-6, in every published T5.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from convert.errors import ConversionError
from convert.rules import Rule, first_rule, rename_all
from convert.safetensors_file import TensorInfo

_BLOCK = "encoder.block.{layer}.layer."
_RULES = (
    Rule("token_embedding.weight", "shared.weight"),
    Rule("norm.weight", "encoder.final_layer_norm.weight"),
    Rule("blocks.{layer}.norm1.weight", _BLOCK + "0.layer_norm.weight"),
    Rule("blocks.{layer}.norm2.weight", _BLOCK + "1.layer_norm.weight"),
    Rule(
        "blocks.{layer}.attn.{proj:q|k|v|o}.{leaf}",
        _BLOCK + "0.SelfAttention.{proj}.{leaf}",
    ),
    Rule(
        "blocks.{layer}.pos_embedding.embedding.weight",
        _BLOCK + "0.SelfAttention.relative_attention_bias.weight",
    ),
    Rule("blocks.{layer}.ffn.gate.0.{leaf}", _BLOCK + "1.DenseReluDense.wi_0.{leaf}"),
    Rule("blocks.{layer}.ffn.fc1.{leaf}", _BLOCK + "1.DenseReluDense.wi_1.{leaf}"),
    Rule("blocks.{layer}.ffn.fc2.{leaf}", _BLOCK + "1.DenseReluDense.wo.{leaf}"),
)
_FIRST = "encoder.block.0.layer."
_BIAS = _FIRST + "0.SelfAttention.relative_attention_bias.weight"
_NEEDED = (
    "shared.weight",
    _BIAS,
    _FIRST + "0.SelfAttention.q.weight",
    _FIRST + "1.DenseReluDense.wi_0.weight",
)


def is_original(tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether these are the key names of the authors' encoder."""
    return "blocks.0.pos_embedding.embedding.weight" in tensors


def is_transformers(tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether these are a T5 or UMT5 under transformers' names, as ComfyUI's files."""
    return _BIAS in tensors and _FIRST + "1.DenseReluDense.wi_0.weight" in tensors


def renamed(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors under transformers' names.

    Args:
      tensors: by original names.

    Raises:
      ConversionError: lists the keys that are not of this layout.
    """
    return rename_all(tensors, partial(first_rule, _RULES), "UMT5's encoder")


def config_of(tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """The transformers `config.json` of an encoder, from its names and shapes.

    Args:
      tensors: under transformers' names.

    Raises:
      ConversionError: lists the tensors that it needs and that are missing, or are no
        matrices.
    """
    if missing := [name for name in _NEEDED if name not in tensors]:
        raise ConversionError(
            "found a T5 or UMT5 encoder, incomplete: expected (by transformers' "
            f"names) {', '.join(missing)}"
        )
    shapes = {name: tensors[name].shape for name in _NEEDED}
    if flat := [f"{n} {list(s)}" for n, s in shapes.items() if len(s) != 2]:
        raise ConversionError(
            "found a T5 or UMT5 encoder, expected matrices, found (by transformers' "
            f"names) {', '.join(flat)}"
        )
    (vocabulary, width), (buckets, heads), (inner, _), (wide, _) = shapes.values()
    if not heads or inner % heads:
        raise ConversionError(
            f"found a T5 or UMT5 encoder, expected rows of q for {heads} heads, found "
            f"{inner}"
        )
    blocks = [re.match(r"encoder\.block\.(\d{1,4})\.", name) for name in tensors]
    shared = _BIAS.replace("block.0.", "block.1.") not in tensors
    return {
        "architectures": ["T5EncoderModel" if shared else "UMT5EncoderModel"],
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": wide,
        "num_layers": 1 + max(int(block[1]) for block in blocks if block),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
    }


__all__ = ["config_of", "is_original", "is_transformers", "renamed"]
