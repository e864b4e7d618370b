"""LoRA files for HunyuanVideo under the names of its authors' repository.

Query, key and value (and in single blocks the feed-forward's first linear) are one
linear there: the rows of its `up` are cut apart as those of the weight are, and all
parts read the same `down`, with the same alpha.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convert import lora_names, original_hunyuan
from convert.lora_names import part_of
from convert.safetensors_file import TensorInfo

_PATCH = "x_embedder.proj.weight"
_SINGLE = "single_transformer_blocks.0.proj_mlp.weight"
# The parts with the rows of the weight, and those that all linears share.
_CUT = {
    lora_names.UP: "lora_up.weight",
    lora_names.BIAS: "lora_up.bias",
    lora_names.DIFF: "diff",
    lora_names.DIFF_BIAS: "diff_b",
}
_SHARED = {lora_names.DOWN: "lora_down.weight", lora_names.ALPHA: "alpha"}


def by_diffusers(
    tensors: Mapping[str, TensorInfo], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, TensorInfo]:
    """The tensors of a file for the linears that diffusers has.

    Args:
      tensors: of the file.
      shapes: of the network's parameters by diffusers' keys; another network than
        HunyuanVideo leaves the tensors as they are.

    Returns:
      Keys under diffusers' names where they had the authors'; others as they were.
    """
    if _SINGLE not in shapes or _PATCH not in shapes:
        return dict(tensors)
    width = shapes[_PATCH][0]
    flat = {s.replace(".", "_"): s for s in original_hunyuan.stems(shapes)}
    found: dict[str, TensorInfo] = {}
    for key, info in tensors.items():
        part = part_of(key)
        made = None
        if part is not None:
            stem = flat.get(part.module, part.module)
            made = _made(stem, part.part, info, width)
        found |= made or {key: info}
    return found


def _made(
    stem: str, part: str, info: TensorInfo, width: int
) -> dict[str, TensorInfo] | None:
    """One tensor for each linear of a module; None where it is not the authors'."""
    key = f"{stem}.weight"
    if part in _CUT:
        cut = original_hunyuan.renamed_one(key, info, width)
        return cut and {_named(name, _CUT[part]): rows for name, rows in cut.items()}
    if part not in _SHARED:
        return None
    for rows in (3 * width, 4 * width):
        # The names alone: fused linears have three or more times the width.
        like = TensorInfo(np.dtype(np.float32), (rows,), Path(), 0)
        if cut := original_hunyuan.renamed_one(key, like, width):
            return {_named(name, _SHARED[part]): info for name in cut}
    return None


def _named(weight: str, part: str) -> str:
    return f"{weight.removesuffix('.weight')}.{part}"


__all__ = ["by_diffusers"]
