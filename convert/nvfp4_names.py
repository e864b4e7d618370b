"""Key names of packed weights: those of each writer become ModelOpt's, and say which.

    ModelOpt              torchao (diffusers)           compressed-tensors
    X.weight              X._weight_qdata               X.weight_packed
    X.weight_scale        X._weight_scale               X.weight_scale
    X.weight_scale_2      X._weight_per_tensor_scale    X.weight_global_scale
    X.input_scale         X._weight_act_per_tensor_scale  X.input_global_scale

torchao leaves out the scale of the tensor where there is none: it is 1 then.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from convert.errors import ConversionError
from convert.safetensors_file import TensorInfo
from sixbit_jax.reading.json_file import parse_json_object
from sixbit_jax.reading.messages import brief, named

# A text of some 30 bytes.
_LARGEST_NOTE = 4096
TORCHAO = "torchao"
COMPRESSED = "compressed-tensors"
_TORCHAO_PARTS = {
    "_weight_qdata": "weight",
    "_weight_scale": "weight_scale",
    "_weight_per_tensor_scale": "weight_scale_2",
    "_weight_act_per_tensor_scale": "input_scale",
}
_BYTES = np.dtype(np.uint8)
_E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)


def canonical(
    tensors: Mapping[str, TensorInfo], notes: Mapping[str, str]
) -> tuple[dict[str, TensorInfo], str | None]:
    """The same tensors under ModelOpt's names, and the writer that other names tell.

    Args:
      tensors: what the files hold.
      notes: the `__metadata__` of the files.

    Raises:
      ConversionError: for weights that torchao or compressed-tensors pack in another
        format than NVFP4; names it.
    """
    if any(name.endswith("._weight_qdata") for name in tensors):
        _check_torchao(tensors, notes)
        pattern = "|".join(_TORCHAO_PARTS)
        return {
            re.sub(rf"\.({pattern})$", lambda m: f".{_TORCHAO_PARTS[m[1]]}", name): info
            for name, info in tensors.items()
        }, TORCHAO
    if any(name.endswith(".weight_packed") for name in tensors):
        _check_compressed(tensors)
        return {
            re.sub(r"\.weight_packed$", ".weight", name): info
            for name, info in tensors.items()
        }, COMPRESSED
    return dict(tensors), None


def _check_torchao(tensors: Mapping[str, TensorInfo], notes: Mapping[str, str]) -> None:
    """Refuses what is not NVFP4, by the type that the file names or by the parts."""
    types = set()
    for text in notes.values():
        found = re.match(r'\{"_type": "(\w+)"', text)
        if found:
            types.add(found[1])
    others = types - {"NVFP4Tensor", "Tensor"}
    for name, info in tensors.items():
        if name.endswith("._weight_qdata") and info.dtype != _BYTES:
            others.add(f"{info.dtype} codes")
        elif name.endswith("._weight_scale") and info.dtype not in (_E4M3, _BYTES):
            others.add(f"{info.dtype} scales")
        elif name.endswith(("._weight_zero_point", "._weight_scale_and_zero")):
            others.add("zero points")
    if others:
        raise ConversionError(
            "weights quantized by torchao: expected NVFP4 (NVFP4Tensor), found "
            f"{', '.join(sorted(others))}; use unquantized weights"
        )


def _check_compressed(tensors: Mapping[str, TensorInfo]) -> None:
    for name, info in tensors.items():
        if not name.endswith(".weight_packed"):
            continue
        stem = name.removesuffix("weight_packed")
        if info.dtype != _BYTES or f"{stem}weight_global_scale" not in tensors:
            raise ConversionError(
                f"{named(name)}: weights of compressed-tensors: expected its format "
                "nvfp4-pack-quantized (uint8 codes with a weight_global_scale), found "
                f"{info.dtype} codes of another format; use unquantized weights"
            )


def declared_by(
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    notes: Mapping[str, str],
) -> tuple[str, ...]:
    """The dialects that the files themselves allow; none if they name none.

    Args:
      tensors: under ModelOpt's names.
      config: the network's `config.json`.
      notes: the `__metadata__` of the files, where single files keep what
        `quantization_config` says.

    Raises:
      ConversionError: if they name a quantization that is not NVFP4.
    """
    marks = [name for name in tensors if name.endswith(".comfy_quant")]
    if marks:
        formats = {_comfy_format(name, tensors[name]) for name in marks}
        if formats != {"nvfp4"}:
            raise ConversionError(
                f"quantized layers: expected ComfyUI's format nvfp4, found "
                f"{', '.join(sorted(formats))} in .comfy_quant"
            )
        return ("comfyui",)
    if any(name.endswith(".weight_global_scale") for name in tensors):
        return ("lightx2v",)
    quantization = config.get("quantization_config") or _noted(notes)
    if not isinstance(quantization, Mapping):
        return ()
    method = str(quantization.get("quant_method", "")).lower()
    algorithm = str(quantization.get("quant_algo", quantization.get("quant_type", "")))
    if "modelopt" not in method and "torchao" not in method:
        return ()
    if "nvfp4" not in (algorithm + str(quantization)).lower():
        found = algorithm or dict(quantization)
        raise ConversionError(
            f"config.json quantization_config: expected NVFP4, found {brief(found)} of "
            f"{brief(method)}"
        )
    return ("modelopt", "modelopt-swizzled")


def rewritten(notes: Mapping[str, str]) -> bool:
    """Whether ModelOpt rewrote the file for another program, maybe with tiled scales.

    Its plain export describes the quantization in `config.json` alone.
    """
    return _noted(notes) is not None


def _noted(notes: Mapping[str, str]) -> Mapping[str, Any] | None:
    try:
        found = json.loads(notes.get("quantization_config", "null"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, Mapping) else None


def _comfy_format(name: str, info: TensorInfo) -> str:
    where = f"{info.file}: {named(name)}"
    if info.nbytes > _LARGEST_NOTE:
        raise ConversionError(
            f"{where}: expected JSON with a format, found {info.nbytes:,} bytes"
        )
    try:
        found = parse_json_object(info.read().tobytes(), where).get("format")
    except ConversionError:
        raise
    except ValueError as error:
        raise ConversionError(str(error)) from error
    if not isinstance(found, str):
        raise ConversionError(
            f"{where}: expected JSON with a format, found {brief(found)}"
        )
    return found


__all__ = ["COMPRESSED", "TORCHAO", "canonical", "declared_by", "rewritten"]
