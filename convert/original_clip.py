"""CLIP's picture encoder under the key names of Wan's authors.

`models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth` holds it with a text encoder
that no video model runs. Query, key and value lie in one matrix, one after the other.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.errors import ConversionError
from convert.rules import Rule, first_rule, other_keys
from convert.safetensors_file import TensorInfo

_LAYER = "encoder.layers.{layer}."
_RULES = (
    Rule("visual.patch_embedding.{leaf}", "embeddings.patch_embedding.{leaf}"),
    Rule("visual.pre_norm.{leaf}", "pre_layrnorm.{leaf}"),
    Rule("visual.post_norm.{leaf}", "post_layernorm.{leaf}"),
    Rule("visual.transformer.{layer}.norm1.{leaf}", _LAYER + "layer_norm1.{leaf}"),
    Rule("visual.transformer.{layer}.norm2.{leaf}", _LAYER + "layer_norm2.{leaf}"),
    Rule(
        "visual.transformer.{layer}.attn.proj.{leaf}",
        _LAYER + "self_attn.out_proj.{leaf}",
    ),
    Rule("visual.transformer.{layer}.mlp.0.{leaf}", _LAYER + "mlp.fc1.{leaf}"),
    Rule("visual.transformer.{layer}.mlp.2.{leaf}", _LAYER + "mlp.fc2.{leaf}"),
)
_QKV = r"visual\.transformer\.(\d{1,4})\.attn\.to_qkv\.(weight|bias)"
_CLASS, _POSITIONS = "visual.cls_embedding", "visual.pos_embedding"
# The text encoder, and what makes one vector of a picture.
_LEFT = r"(textual\.|log_scale$|visual\.head$)"
# Of the published network: a head has 80 channels.
_HEAD = 80


@dataclass(frozen=True)
class PartInfo(TensorInfo):
    """Some rows of a tensor, in another shape.

    Attributes:
      whole: the tensor.
      begin: the first of its rows.
      rows: how many.
    """

    whole: TensorInfo | None = None
    begin: int = 0
    rows: int = 0

    @property
    def dtype_name(self) -> str:
        """Of the whole tensor."""
        assert self.whole is not None
        return self.whole.dtype_name

    def read(self) -> np.ndarray:
        """Reads the tensor and takes its rows."""
        assert self.whole is not None
        part = self.whole.read()[self.begin : self.begin + self.rows]
        return np.ascontiguousarray(part).reshape(self.shape)


def is_original(tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether these are the key names of the authors' picture encoder."""
    return "visual.transformer.0.attn.to_qkv.weight" in tensors


def renamed(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors under transformers' names; those of the text encoder keep theirs.

    Args:
      tensors: by original names.

    Raises:
      ConversionError: lists the keys that are not of this layout.
    """
    found: dict[str, TensorInfo] = {}
    unknown = []
    for key, info in tensors.items():
        name = first_rule(_RULES, key)
        if name is not None:
            found[name] = info
        elif match := re.fullmatch(_QKV, key):
            found |= _split(info, int(match[1]), match[2])
        elif key == _CLASS and info.shape:
            found["embeddings.class_embedding"] = _part(info, info.shape[-1:])
        elif key == _POSITIONS and len(info.shape) > 1:
            found["embeddings.position_embedding.weight"] = _part(info, info.shape[-2:])
        elif re.match(_LEFT, key):
            found[key] = info
        else:
            unknown.append(key)
    if unknown:
        raise other_keys(unknown, "Wan's CLIP")
    return found


def _part(info: TensorInfo, shape: tuple[int, ...]) -> TensorInfo:
    """A tensor without its leading axes of one."""
    if math.prod(shape) != math.prod(info.shape):
        return info
    place = (info.dtype, shape, info.file, info.offset)
    return PartInfo(*place, whole=info, rows=info.shape[0])


def _split(info: TensorInfo, layer: int, leaf: str) -> dict[str, TensorInfo]:
    rows = info.shape[0] // 3 if info.shape else 0
    place = (info.dtype, (rows, *info.shape[1:]), info.file, info.offset)
    return {
        f"encoder.layers.{layer}.self_attn.{name}_proj.{leaf}": PartInfo(
            *place, whole=info, begin=i * rows, rows=rows
        )
        for i, name in enumerate("qkv")
    }


def config_of(tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """The transformers `config.json` of the encoder, from its shapes.

    Args:
      tensors: under transformers' names.

    Raises:
      ConversionError: lists the tensors that it needs and that are missing or of
        another number of axes, or says that its width is no number of heads.
    """
    needed = {
        "embeddings.patch_embedding.weight": 4,
        "embeddings.position_embedding.weight": 2,
        "encoder.layers.0.mlp.fc1.weight": 2,
    }
    wrong = [
        f"{name} ({'missing' if name not in tensors else list(tensors[name].shape)})"
        for name, axes in needed.items()
        if name not in tensors or len(tensors[name].shape) != axes
    ]
    if wrong:
        raise ConversionError(
            "found the original layout of Wan's CLIP; expected (by transformers' "
            f"names) other tensors than {', '.join(wrong)}"
        )
    patch, positions, wide = (tensors[name].shape for name in needed)
    width, side = patch[0], math.isqrt(max(positions[0] - 1, 0))
    if width % _HEAD or side**2 != positions[0] - 1:
        raise ConversionError(
            f"found the original layout of Wan's CLIP; expected heads of {_HEAD} "
            f"channels and a square of patches, found a width of {width} and "
            f"{positions[0]} positions"
        )
    layers = [re.match(r"encoder\.layers\.(\d{1,4})\.", name) for name in tensors]
    return {
        "architectures": ["CLIPVisionModel"],
        "hidden_size": width,
        "intermediate_size": wide[0],
        "num_hidden_layers": 1 + max(int(layer[1]) for layer in layers if layer),
        "num_attention_heads": width // _HEAD,
        "num_channels": patch[1],
        "image_size": side * patch[-1],
        "patch_size": patch[-1],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }


__all__ = ["PartInfo", "config_of", "is_original", "renamed"]
