"""LoRA files in the namings of other programs, written by the safetensors package."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.golden import wan_cases

_NAMES = json.loads((wan_cases.FOLDER / "original_names.json").read_text())
_BACK = {theirs: ours for ours, theirs in _NAMES.items()}
# Prefix, names of down and up, alpha beside them, flat names, original names.
NAMINGS: dict[str, tuple[str, str, str, bool, bool, bool]] = {
    "peft": ("base_model.model.", "lora_A.weight", "lora_B.weight", *[False] * 3),
    "peft-adapter": (
        "base_model.model.",
        "lora_A.default.weight",
        "lora_B.default.weight",
        *[False] * 3,
    ),
    "diffusers": ("transformer.", "lora_A.weight", "lora_B.weight", *[False] * 3),
    "diffusers-old": (
        "transformer.",
        "lora.down.weight",
        "lora.up.weight",
        *[False] * 3,
    ),
    "bare": ("", "lora_down.weight", "lora_up.weight", True, False, False),
    "diffsynth": (
        "pipe.dit.",
        "lora_A.default.weight",
        "lora_B.default.weight",
        False,
        False,
        True,
    ),
    "comfyui": (
        "diffusion_model.",
        "lora_down.weight",
        "lora_up.weight",
        True,
        False,
        True,
    ),
    "kohya": ("lora_unet_", "lora_down.weight", "lora_up.weight", True, True, True),
    "kohya-diffusers": (
        "lora_unet_",
        "lora_down.weight",
        "lora_up.weight",
        True,
        True,
        False,
    ),
}


def original(key: str) -> str:
    """A key of Wan as its authors name it."""
    layer = re.match(r"blocks\.(\d+)\.", key)
    if layer is None:
        return _BACK[key]
    first = _BACK[key.replace(layer[0], "blocks.0.", 1)]
    return first.replace("blocks.0.", layer[0], 1)


def low_rank(
    weights: dict[str, np.ndarray],
    keys: list[str],
    naming: str,
    *,
    dtype: Any = np.float32,
    seed: int = 0,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A file's tensors, and what each weight gains at strength 1, float64.

    Ranks and alphas differ from layer to layer.
    """
    prefix, down_name, up_name, with_alpha, flat, original_names = NAMINGS[naming]
    draw = np.random.default_rng(seed)
    tensors, gains = {}, {}
    for number, key in enumerate(keys):
        rank, alpha = 2 + number % 3, 1.5 + number
        shape = weights[key].shape
        a = (draw.standard_normal((rank, *shape[1:])) * 0.1).astype(dtype)
        b = (draw.standard_normal((shape[0], rank)) * 0.1).astype(dtype)
        name = (original(key) if original_names else key).removesuffix(".weight")
        name = prefix + (name.replace(".", "_") if flat else name)
        tensors[f"{name}.{down_name}"] = a
        more = (1,) * (len(shape) - 2)
        tensors[f"{name}.{up_name}"] = b.reshape(*b.shape, *more)
        scale = 1.0
        if with_alpha:
            tensors[f"{name}.alpha"] = np.array(alpha, np.float32)
            scale = alpha / rank
        product = b.astype(np.float64) @ a.reshape(rank, -1).astype(np.float64)
        gains[key] = scale * product.reshape(shape)
    return tensors, gains


def write(file: Path, tensors: dict[str, np.ndarray], **metadata: str) -> Path:
    """A safetensors file, by its own package."""
    save_file(tensors, file, metadata=metadata or None)
    return file
