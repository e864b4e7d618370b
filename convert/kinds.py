"""Quantizations of others that are not read: refused by name, not by a list of keys."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert import torch_file
from convert.errors import ConversionError
from convert.lora_names import UP, part_of
from convert.safetensors_file import TensorInfo
from sixbit_jax.reading.messages import named
from sixbit_jax.reading.regular_file import open_regular

# Other networks of the family, by what only they have; behind no prefix.
_NETWORKS = {
    "Wan VACE": r"vace_(blocks|patch_embedding)\..*",
    "Wan Animate": (
        r"(face_adapter|motion_encoder|pose_patch_embedding|face_encoder)\..*"
    ),
    "Wan S2V (sound)": (
        r"(casual_audio_encoder|audio_injector|cond_encoder|frame_packer"
        r"|trainable_cond_mask|audio_proj)\b.*"
    ),
    "SkyReels": r"fps_(embedding|projection)\..*",
    "Wan Fun (control)": r"(control_adapter|ref_conv)\..*",
    "Wan with a camera (ReCamMaster)": r"blocks\.\d+\.(cam_encoder|projector)\..*",
    "Wan with sound (MultiTalk)": r"blocks\.\d+\.audio_cross_attn\..*",
    "MoCha or another Wan with its own condition": r"(dwpose_embedding|randomref_).*",
}
# What is not the network at all.
_COMPONENTS = {
    "Wan's VAE in its original layout": (
        r"(encoder|decoder)\.(downsamples|upsamples)\.\d+\..*"
    ),
    "a text encoder (T5) in the layout of transformers": (
        r"(encoder\.)?block\.\d+\.layer\.\d+\.SelfAttention\..*"
    ),
}
# Beginnings of files that stand for others, whatever they are called.
_STAND_INS = {
    b"version https://git-lfs.github.com/spec/": (
        "a Git LFS pointer, which stands for the file (fetch it: git lfs pull)"
    ),
    b"<!DOCTYPE": "a web page (a download that failed, or that asked to log in)",
    b"<html": "a web page (a download that failed, or that asked to log in)",
}
# Containers by their first bytes, and the names that their files have.
_CONTAINERS: Mapping[str, tuple[tuple[str, ...], Callable[[bytes], bool]]] = {
    "a GGUF file": ((".gguf",), lambda begin: begin.startswith(b"GGUF")),
    "a safetensors file": (
        (".safetensors",),
        lambda begin: begin[5:9] == b"\0\0\0{",
    ),
    "a file of torch.save": (
        (".pth", *torch_file.SUFFIXES),
        lambda begin: begin.startswith(b"PK\x03\x04"),
    ),
}
_KEYS = {
    "bitsandbytes (nf4, fp4 or int8)": (
        r".*\.(weight\.(absmax|quant_map|nested_\w+|quant_state\..*)|SCB|weight_format)"
    ),
    "SVDQuant (Nunchaku)": r".*\.(wscales|wcscales|smooth_factor(_orig)?)",
    "GPTQ or AWQ": r".*\.(qzeros|g_idx)",
    "ModelOpt with AWQ (pre_quant_scale)": r".*\.pre_quant_scale",
    "quanto": r".*\.weight\._(data|scale|shift)",
    "float8 with scales per block (weight_scale_inv)": r".*\.weight_scale_inv",
}
# By `quant_method` of config.json.
_METHODS = {
    "bitsandbytes": "bitsandbytes (nf4, fp4 or int8)",
    "svdquant": "SVDQuant (Nunchaku)",
    "nunchaku": "SVDQuant (Nunchaku)",
    "gptq": "GPTQ or AWQ",
    "awq": "GPTQ or AWQ",
    "quanto": "quanto",
    "gguf": "GGUF",
}


def refuse_others(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> None:
    """Refuses quantized weights that no part of the converter reads.

    Args:
      tensors: what the files hold.
      config: the network's `config.json`.

    Raises:
      ConversionError: names the kind, and the key or the field that tells it.
    """
    for kind, pattern in _KEYS.items():
        for name in tensors:
            if re.fullmatch(pattern, name):
                raise _refused(kind, named(name))
    _refuse_networks(tensors)
    for name, info in tensors.items():
        if name.endswith(".weight") and info.dtype == np.int8 and len(info.shape) == 2:
            raise _refused("int8", f"{named(name)} of int8")
        scale = tensors.get(f"{name}_scale")
        if scale is not None and _by_exponents(info, scale):
            raise _refused("MXFP8 or MXFP4", f"{named(name)} with scales per 32")
    quantization = config.get("quantization_config")
    if isinstance(quantization, Mapping):
        method = quantization.get("quant_method")
        if isinstance(method, str) and method.lower() in _METHODS:
            raise _refused(
                _METHODS[method.lower()],
                f"config.json quantization_config.quant_method {method!r}",
            )


def _refuse_networks(tensors: Mapping[str, TensorInfo]) -> None:
    """Refuses other networks of the family, and a LoRA in the place of a network."""
    for kind, pattern in _NETWORKS.items():
        for name in tensors:
            if re.fullmatch(pattern, name):
                raise ConversionError(
                    "expected CogVideoX, HunyuanVideo or Wan, found "
                    f"{kind} ({named(name)}), a network of its own, which is not "
                    "converted; the file is not damaged"
                )
    parts = [part_of(name) for name in tensors]
    if any(part is not None and part.part == UP for part in parts):
        raise ConversionError(
            "expected the weights of a network, found a LoRA ("
            f"{named(next(iter(tensors)))}); convert its network and add it with --lora"
        )


def component_of(tensors: Mapping[str, TensorInfo]) -> str | None:
    """What a file without config.json is, where it is no transformer."""
    for kind, pattern in _COMPONENTS.items():
        if any(re.fullmatch(pattern, name) for name in tensors):
            return kind
    return None


def refuse_stand_in(file: Path) -> None:
    """Refuses a text where a file of weights should be, and one with another's name.

    Raises:
      ConversionError: names what it is.
    """
    with open_regular(file) as stream:
        begin = stream.read(64)
    for start, kind in _STAND_INS.items():
        if begin.lstrip()[: len(start)].lower() == start.lower():
            raise ConversionError(f"{file}: expected weights, found {kind}")
    for kind, (suffixes, starts) in _CONTAINERS.items():
        if starts(begin) and file.suffix not in suffixes:
            raise ConversionError(
                f"{file}: expected what its name says, found {kind}; name it "
                f"{file.stem}{suffixes[0]}"
            )


def _by_exponents(weight: TensorInfo, scale: TensorInfo) -> bool:
    """Whether bytes that are powers of two scale blocks of 32 values."""
    if scale.dtype != np.uint8 or len(weight.shape) != 2 or len(scale.shape) != 2:
        return False
    columns = weight.shape[1] * (2 if weight.dtype == np.uint8 else 1)
    return columns % 32 == 0 and scale.shape == (weight.shape[0], columns // 32)


def _refused(kind: str, where: str) -> ConversionError:
    return ConversionError(
        "expected floating-point weights, scaled float8 or packed NVFP4, found "
        f"weights quantized by {kind} ({where}), which are not read; use the network's "
        "unquantized weights"
    )


__all__ = ["component_of", "refuse_others", "refuse_stand_in"]
