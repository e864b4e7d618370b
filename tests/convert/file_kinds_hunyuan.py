"""Rows of the table of kinds of files whose network is a HunyuanVideo."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.convert.checkpoints import write_checkpoint
from tests.convert.hunyuan_files import original
from tests.convert.test_gguf_file import write as write_gguf
from tests.golden import hunyuan_video_cases as cases

CASE = cases.load("t2v_128_f2_8x6_t7")
WEIGHTS = CASE.weights()
_TARGET = "single_transformer_blocks.0.attn.to_v.weight"


def plain(
    folder: Path, spelled: Callable[[str], str] = str
) -> tuple[Any, dict[str, np.ndarray]]:
    """One file in the authors' layout, or in another spelling of it."""
    theirs = {spelled(key): value for key, value in original(WEIGHTS).items()}
    save_file(theirs, folder / "hunyuan.safetensors")
    return folder / "hunyuan.safetensors", WEIGHTS


def gguf(folder: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """The same as GGUF in 16 bits."""
    from gguf import GGMLQuantizationType

    theirs = original(WEIGHTS)
    kinds = {
        name: GGMLQuantizationType.BF16
        for name, array in theirs.items()
        if array.ndim == 2 and "weight" in name
    }
    write_gguf(folder / "hunyuan.gguf", theirs, kinds=kinds, arch="hyvid")
    upper, half = np.uint32(0xFFFF0000), np.uint32(0x7FFF)
    decoded = {}
    for key, value in WEIGHTS.items():
        decoded[key] = value
        if value.ndim == 2 and "weight" in key:
            bits = value.view(np.uint32)
            even = bits + half + ((bits >> np.uint32(16)) & np.uint32(1))
            decoded[key] = (even & upper).view(np.float32)
    return folder / "hunyuan.gguf", decoded


def lora(folder: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """A LoRA of kohya's naming whose update is that of the values alone."""
    width = WEIGHTS["x_embedder.proj.weight"].shape[0]
    rows = 3 * width + WEIGHTS["single_transformer_blocks.0.proj_mlp.bias"].size
    up = np.zeros((rows, 2), np.float32)
    up[2 * width : 3 * width] = np.arange(2 * width).reshape(width, 2) / width
    down = np.linspace(-1, 1, 2 * width, dtype=np.float32).reshape(2, width)
    name = "lora_unet_single_blocks_0_linear1"
    tensors = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
    save_file(tensors, folder / "lora.safetensors")
    source = write_checkpoint(folder / "m", CASE.config, WEIGHTS)
    summed = WEIGHTS[_TARGET] + up[2 * width : 3 * width] @ down
    found = {**WEIGHTS, _TARGET: summed}
    return {"source": source, "lora": [folder / "lora.safetensors"]}, found
