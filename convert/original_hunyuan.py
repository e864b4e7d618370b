"""HunyuanVideo in its original layout: the key names of its authors' repository.

Files for ComfyUI and GGUF keep them, or have ComfyUI's own spelling. Query, key and
value are one matrix there, in single blocks together with the feed-forward's first:
they are cut apart by rows, which is exact. Everything that diffusers' `config.json`
would say is read off the shapes; only whether an image replaces the first frame's
tokens (I2V, token_replace) stands in no file: such a network is read as one for text.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from convert.errors import ConversionError
from convert.rules import collapse
from convert.safetensors_file import TensorInfo
from sixbit_jax.reading.messages import several

_MODEL = "HunyuanVideoTransformer3DModel"
_HEAD_DIM, _ROPE_AXES = 128, (16, 56, 56)
_TOKENS = "txt_in.individual_token_refiner."
# ComfyUI's spelling -> the authors'.
_SPELLINGS = (
    (r"^txt_in\.t_embedder\.in_layer\.", "txt_in.t_embedder.mlp.0."),
    (r"^txt_in\.t_embedder\.out_layer\.", "txt_in.t_embedder.mlp.2."),
    (r"^txt_in\.c_embedder\.in_layer\.", "txt_in.c_embedder.linear_1."),
    (r"^txt_in\.c_embedder\.out_layer\.", "txt_in.c_embedder.linear_2."),
    (r"^(time|guidance)_in\.in_layer\.", r"\1_in.mlp.0."),
    (r"^(time|guidance)_in\.out_layer\.", r"\1_in.mlp.2."),
    (r"_mod\.lin\.", "_mod.linear."),
    (r"\.modulation\.lin\.", ".modulation.linear."),
    (r"_attn\.qkv\.", "_attn_qkv."),
    (r"_attn\.proj\.", "_attn_proj."),
    (r"_attn\.norm\.query_norm\.scale$", "_attn_q_norm.weight"),
    (r"_attn\.norm\.key_norm\.scale$", "_attn_k_norm.weight"),
    (r"\.norm\.query_norm\.scale$", ".q_norm.weight"),
    (r"\.norm\.key_norm\.scale$", ".k_norm.weight"),
    (r"(^double_blocks\..*|\.blocks\.\d+\.)mlp\.0\.", r"\1mlp.fc1."),
    (r"(^double_blocks\..*|\.blocks\.\d+\.)mlp\.2\.", r"\1mlp.fc2."),
)
_EMBED, _TEXT = "time_text_embed.", "context_embedder."
# Whole stems, without weight or bias -> diffusers'.
_OUTSIDE = {
    "img_in.proj": "x_embedder.proj",
    "time_in.mlp.0": _EMBED + "timestep_embedder.linear_1",
    "time_in.mlp.2": _EMBED + "timestep_embedder.linear_2",
    "guidance_in.mlp.0": _EMBED + "guidance_embedder.linear_1",
    "guidance_in.mlp.2": _EMBED + "guidance_embedder.linear_2",
    "vector_in.in_layer": _EMBED + "text_embedder.linear_1",
    "vector_in.out_layer": _EMBED + "text_embedder.linear_2",
    "txt_in.input_embedder": _TEXT + "proj_in",
    "txt_in.t_embedder.mlp.0": _TEXT + "time_text_embed.timestep_embedder.linear_1",
    "txt_in.t_embedder.mlp.2": _TEXT + "time_text_embed.timestep_embedder.linear_2",
    "txt_in.c_embedder.linear_1": _TEXT + "time_text_embed.text_embedder.linear_1",
    "txt_in.c_embedder.linear_2": _TEXT + "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
_OUTPUT_NORM = "final_layer.adaLN_modulation.1"
_REFINER = {
    "norm1": "norm1",
    "norm2": "norm2",
    "self_attn_proj": "attn.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm_out.linear",
}
_DUAL = {
    "img_mod.linear": "norm1.linear",
    "txt_mod.linear": "norm1_context.linear",
    "img_attn_q_norm": "attn.norm_q",
    "img_attn_k_norm": "attn.norm_k",
    "txt_attn_q_norm": "attn.norm_added_q",
    "txt_attn_k_norm": "attn.norm_added_k",
    "img_attn_proj": "attn.to_out.0",
    "txt_attn_proj": "attn.to_add_out",
    "img_mlp.fc1": "ff.net.0.proj",
    "img_mlp.fc2": "ff.net.2",
    "txt_mlp.fc1": "ff_context.net.0.proj",
    "txt_mlp.fc2": "ff_context.net.2",
}
_SINGLE = {
    "modulation.linear": "norm.linear",
    "q_norm": "attn.norm_q",
    "k_norm": "attn.norm_k",
    "linear2": "proj_out",
}
_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")


class _Stack(NamedTuple):
    """Names of a run of blocks.

    Attributes:
      pattern: of the original names, the number in a group.
      target: diffusers' prefix.
      names: stems that are one tensor in both.
      fused: stems that are several; the last takes what the others leave.
    """

    pattern: str
    target: str
    names: Mapping[str, str]
    fused: Mapping[str, tuple[str, ...]]


_NUMBER = r"([0-9]{1,4})\."
_STACKS = (
    _Stack(
        re.escape(_TOKENS) + r"blocks\." + _NUMBER,
        _TEXT + "token_refiner.refiner_blocks.",
        _REFINER,
        {"self_attn_qkv": _QKV},
    ),
    _Stack(
        r"double_blocks\." + _NUMBER,
        "transformer_blocks.",
        _DUAL,
        {
            "img_attn_qkv": _QKV,
            "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        },
    ),
    _Stack(
        r"single_blocks\." + _NUMBER,
        "single_transformer_blocks.",
        _SINGLE,
        {"linear1": (*_QKV, "proj_mlp")},
    ),
)


@dataclass(frozen=True)
class RowsInfo(TensorInfo):
    """Rows of another tensor: `read` gives `runs` of them, one after the other.

    Attributes:
      base: the tensor.
      runs: (first row, row after the last) of each run.
    """

    base: TensorInfo | None = None
    runs: tuple[tuple[int, int], ...] = ()

    @property
    def dtype_name(self) -> str:
        """For reports."""
        assert self.base is not None
        return self.base.dtype_name

    @property
    def is_float(self) -> bool:
        """Of the tensor that they are of."""
        assert self.base is not None
        return self.base.is_float

    def read(self) -> np.ndarray:
        """Reads the tensor and takes the rows."""
        assert self.base is not None
        whole = self.base.read()
        return np.concatenate([whole[start:stop] for start, stop in self.runs])


def _rows(info: TensorInfo, *runs: tuple[int, int]) -> TensorInfo:
    """Rows of a tensor; of a plain file, one run is read alone."""
    shape = (sum(stop - start for start, stop in runs), *info.shape[1:])
    if type(info) is TensorInfo and len(runs) == 1:
        step = math.prod(info.shape[1:]) * info.dtype.itemsize
        return replace(info, shape=shape, offset=info.offset + runs[0][0] * step)
    return RowsInfo(info.dtype, shape, info.file, info.offset, info, runs)


def is_original(tensors: Mapping[str, Any]) -> bool:
    """Whether these are the authors' key names, in either spelling."""
    return any(key.startswith(_TOKENS) for key in tensors)


def renamed(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors under diffusers' names, matrices of several linears cut apart.

    Args:
      tensors: by original names, without a prefix.

    Raises:
      ConversionError: lists the keys that are not of this layout, and matrices that
        cannot be cut.
    """
    found: dict[str, TensorInfo] = {}
    unknown, uneven = [], []
    patch = tensors.get("img_in.proj.weight")
    width = patch.shape[0] if patch is not None and patch.shape else 0
    for key, info in tensors.items():
        made = renamed_one(key, info, width)
        if made is None:
            unknown.append(key)
        elif not made:
            uneven.append(f"{key} {list(info.shape)}")
        else:
            found |= made
    problems = several(collapse(unknown))
    if uneven:
        problems += ["of a number of rows that does not fit:", *several(uneven)]
    if problems:
        raise ConversionError(
            "\n  ".join(
                [
                    "expected only keys of the original layout of HunyuanVideo "
                    "(unpacked weights: fused ones are cut apart), found others:",
                    *problems,
                ]
            )
        )
    return found


def renamed_one(key: str, info: TensorInfo, width: int) -> dict[str, TensorInfo] | None:
    """What one tensor becomes, by diffusers' names.

    Args:
      key: the original name, in either spelling.
      info: the tensor.
      width: of the residual stream.

    Returns:
      None for another layout; nothing for a matrix that cannot be cut.
    """
    for pattern, spelling in _SPELLINGS:
        key = re.sub(pattern, spelling, key)
    stem, _, leaf = key.rpartition(".")
    if leaf not in ("weight", "bias"):
        return None
    if stem in _OUTSIDE:
        return {f"{_OUTSIDE[stem]}.{leaf}": info}
    rows = info.shape[0] if info.shape else 0
    if stem == _OUTPUT_NORM:
        # Shift before scale there, scale before shift in diffusers.
        half = rows // 2
        swapped = {f"norm_out.linear.{leaf}": _rows(info, (half, rows), (0, half))}
        return swapped if rows and not rows % 2 else {}
    for stack in _STACKS:
        block = re.match(stack.pattern, stem)
        if block is None:
            continue
        inside, prefix = stem[block.end() :], f"{stack.target}{block[1]}."
        if inside in stack.names:
            return {f"{prefix}{stack.names[inside]}.{leaf}": info}
        if inside in stack.fused:
            parts = stack.fused[inside]
            return _cut(info, [f"{prefix}{part}.{leaf}" for part in parts], width)
    return None


def stems(keys: Mapping[str, Any]) -> list[str]:
    """The authors' names of all modules of a network, without weight or bias.

    Args:
      keys: diffusers' names of its parameters.
    """
    found = [*_OUTSIDE, _OUTPUT_NORM]
    for stack in _STACKS:
        prefix = stack.pattern.removesuffix(_NUMBER).replace("\\", "")
        found += [
            f"{prefix}{number}.{name}"
            for number in range(_count(keys, stack.target.removesuffix(".")))
            for name in (*stack.names, *stack.fused)
        ]
    return found


def _cut(info: TensorInfo, names: list[str], width: int) -> dict[str, TensorInfo]:
    """q, k and v of the network's width; behind them, all that is left."""
    rows = info.shape[0] if info.shape else 0
    ends = [width, 2 * width, 3 * width, rows][: len(names)]
    if ends[-1] != rows or rows < 3 * width + len(names) - 3 or not width:
        return {}
    runs = zip([0, *ends[:-1]], ends, strict=True)
    return {name: _rows(info, run) for name, run in zip(names, runs, strict=True)}


def config_of(tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """The diffusers `config.json` of a network, from its shapes.

    Args:
      tensors: under diffusers' names.

    Raises:
      ConversionError: lists the tensors that it needs and that are missing.
    """
    needed = {
        "x_embedder.proj.weight": 5,
        "proj_out.weight": 2,
        _TEXT + "proj_in.weight": 2,
        _EMBED + "text_embedder.linear_1.weight": 2,
        "transformer_blocks.0.ff.net.0.proj.weight": 2,
        "single_transformer_blocks.0.proj_mlp.weight": 2,
    }
    wrong = [
        name
        for name, axes in needed.items()
        if name not in tensors or len(tensors[name].shape) != axes
    ]
    if wrong:
        raise ConversionError(
            "found the original layout of HunyuanVideo, incomplete: expected (by "
            f"diffusers' names) {', '.join(wrong)}"
        )
    patch, output, text, pooled, wide, _ = (tensors[name].shape for name in needed)
    outputs = output[0] // math.prod(patch[2:])
    concatenated = patch[1] == 2 * outputs + 1
    return {
        "_class_name": _MODEL,
        "in_channels": patch[1],
        "out_channels": outputs,
        "num_attention_heads": patch[0] // _HEAD_DIM,
        "attention_head_dim": _HEAD_DIM,
        "num_layers": _count(tensors, "transformer_blocks"),
        "num_single_layers": _count(tensors, "single_transformer_blocks"),
        "num_refiner_layers": _count(tensors, _TEXT + "token_refiner.refiner_blocks"),
        "mlp_ratio": wide[0] / patch[0],
        "patch_size": patch[3],
        "patch_size_t": patch[2],
        "guidance_embeds": _EMBED + "guidance_embedder.linear_1.weight" in tensors,
        "text_embed_dim": text[1],
        "pooled_projection_dim": pooled[1],
        "rope_theta": 256.0,
        "rope_axes_dim": list(_ROPE_AXES),
        "image_condition_type": "latent_concat" if concatenated else None,
    }


def _count(tensors: Mapping[str, Any], stack: str) -> int:
    pattern = re.compile(re.escape(stack) + r"\." + _NUMBER)
    return 1 + max((int(m[1]) for m in map(pattern.match, tensors) if m), default=-1)


__all__ = ["config_of", "is_original", "renamed", "renamed_one", "stems"]
