"""Wan in its original layout: the key names of its authors' repository.

Files for ComfyUI and LightX2V keep them, often behind a prefix (`prefixes`), and have
no diffusers `config.json`: everything that it would say is read off the shapes.
"""

import re
from collections.abc import Mapping
from typing import Any

from convert.errors import ConversionError
from convert.rules import rename_all
from convert.safetensors_file import TensorInfo

_EMBEDDER = "condition_embedder."
# Whole stems, without weight, bias or what belongs to a packed weight.
_OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "time_embedding.0": _EMBEDDER + "time_embedder.linear_1",
    "time_embedding.2": _EMBEDDER + "time_embedder.linear_2",
    "time_projection.1": _EMBEDDER + "time_proj",
    "text_embedding.0": _EMBEDDER + "text_embedder.linear_1",
    "text_embedding.2": _EMBEDDER + "text_embedder.linear_2",
    "img_emb.proj.0": _EMBEDDER + "image_embedder.norm1",
    "img_emb.proj.1": _EMBEDDER + "image_embedder.ff.net.0.proj",
    "img_emb.proj.3": _EMBEDDER + "image_embedder.ff.net.2",
    "img_emb.proj.4": _EMBEDDER + "image_embedder.norm2",
    "head.head": "proj_out",
}
_INSIDE = {
    **{f"self_attn.{x}": f"attn1.to_{x}" for x in "qkv"},
    **{f"cross_attn.{x}": f"attn2.to_{x}" for x in "qkv"},
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.o": "attn2.to_out.0",
    **{f"self_attn.norm_{x}": f"attn1.norm_{x}" for x in "qk"},
    **{f"cross_attn.norm_{x}": f"attn2.norm_{x}" for x in "qk"},
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    # The norm with weights is the third there and the second in diffusers.
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
# Parameters that are no linear's or norm's.
_ALONE = {
    "head.modulation": "scale_shift_table",
    "img_emb.emb_pos": _EMBEDDER + "image_embedder.pos_embed",
}
_HEAD_DIM = 128
_BLOCK = r"blocks\.([0-9]{1,4})\."
_PATCH = 4
_MODEL = "WanTransformer3DModel"
_NEEDED = (
    "patch_embedding.weight",
    "proj_out.weight",
    _EMBEDDER + "time_embedder.linear_1.weight",
    _EMBEDDER + "text_embedder.linear_1.weight",
    "blocks.0.ffn.net.0.proj.weight",
)


def renamed(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors under diffusers' names.

    Args:
      tensors: by original names, without a prefix; those of packed weights have their
        suffixes.

    Raises:
      ConversionError: lists the keys that are not of this layout.
    """
    hint = " (another kind of Wan, or not the whole network)"
    return rename_all(tensors, _rename, "Wan", hint)


def _rename(key: str) -> str | None:
    if key in _ALONE:
        return _ALONE[key]
    block = re.match(_BLOCK + r"(.*)$", key)
    if block is None:
        return _stem(key, _OUTSIDE)
    inside = block[2]
    name = "scale_shift_table" if inside == "modulation" else _stem(inside, _INSIDE)
    return None if name is None else f"blocks.{block[1]}.{name}"


def original_of(module: str) -> str | None:
    """The original name of a module, or of a parameter that is no module's."""
    for original, name in _ALONE.items():
        if name == module:
            return original
    block = re.match(_BLOCK + r"(.*)$", module)
    table = _OUTSIDE if block is None else _INSIDE
    inner = module if block is None else block[2]
    if block is not None and inner == "scale_shift_table":
        return f"blocks.{block[1]}.modulation"
    for original, name in table.items():
        if name == inner:
            return original if block is None else f"blocks.{block[1]}.{original}"
    return None


def _stem(key: str, table: Mapping[str, str]) -> str | None:
    stem, _, leaf = key.rpartition(".")
    return f"{table[stem]}.{leaf}" if stem in table else None


def is_whole(tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether these, under diffusers' names, say what Wan they are."""
    return all(name in tensors for name in _NEEDED)


def config_of(tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """The diffusers `config.json` of a network, from its shapes.

    Args:
      tensors: under diffusers' names; packed weights may be packed still.

    Raises:
      ConversionError: lists the tensors that it needs and that are missing.
    """
    needed = _NEEDED
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise ConversionError(
            "found the original layout of Wan, incomplete: expected (by diffusers' "
            f"names) {', '.join(missing)}"
        )
    patch, output, time, text, wide = (tensors[name] for name in needed)
    flat = [
        f"{name} {list(tensors[name].shape)}"
        for name, axes in zip(needed, (5, 2, 2, 2, 2), strict=True)
        if len(tensors[name].shape) != axes
    ]
    if flat:
        raise ConversionError(
            "found the original layout of Wan, expected a convolution of five axes and "
            f"linears of two, found (by diffusers' names) {', '.join(flat)}"
        )
    dim, layers = patch.shape[0], re.compile(_BLOCK)
    image = tensors.get(_EMBEDDER + "image_embedder.norm1.weight")
    positions = tensors.get(_EMBEDDER + "image_embedder.pos_embed")
    return {
        "_class_name": _MODEL,
        "patch_size": [1, 2, 2],
        "num_attention_heads": dim // _HEAD_DIM,
        "attention_head_dim": _HEAD_DIM,
        "in_channels": patch.shape[1],
        "out_channels": output.shape[0] // _PATCH,
        "text_dim": _columns(text),
        "freq_dim": _columns(time),
        "ffn_dim": wide.shape[0],
        "num_layers": 1 + max(int(m[1]) for m in map(layers.match, tensors) if m),
        "cross_attn_norm": "blocks.0.norm2.weight" in tensors,
        "eps": 1e-6,
        "image_dim": _axis(image, 0),
        "added_kv_proj_dim": None if image is None else dim,
        "pos_embed_seq_len": _axis(positions, 1),
    }


def _axis(tensor: TensorInfo | None, axis: int) -> int | None:
    """The size of an axis; 0, which nothing accepts, if there is none."""
    if tensor is None:
        return None
    return tensor.shape[axis] if axis < len(tensor.shape) else 0


def _columns(weight: TensorInfo) -> int:
    """K of a linear; two codes per byte where it is packed."""
    return weight.shape[1] * (2 if weight.dtype.name == "uint8" else 1)


__all__ = ["config_of", "is_whole", "original_of", "renamed"]
