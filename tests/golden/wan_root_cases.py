"""Tiny roots of Wan, with the names of its authors and with those of diffusers.

`make_wan_root.py` writes the authors' files with PyTorch; the tests write the diffusers
root from the same names and shapes. Needs NumPy only.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.golden.pipeline_cases import UMT5, UNIPC, WAN
from tests.golden.tokenizer_cases import unpack
from tests.golden.vae_wan_cases import vae_weights
from tests.golden.weights import random_weights

FOLDER = Path(__file__).parent / "wan_root"
T5_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
CLIP_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
VAE_FILES = {"2.1": "Wan2.1_VAE.pth", "2.2": "Wan2.2_VAE.pth"}

ENCODER = UMT5 | {"d_model": 16, "d_kv": 4, "d_ff": 24}
CLIP = {
    "architectures": ["CLIPVisionModel"],
    "hidden_size": 80,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_channels": 3,
    "image_size": 12,
    "patch_size": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
# Latents of as many channels as the published ones, whose statistics are known.
VAES: dict[str, dict[str, Any]] = {
    "2.1": {
        "_class_name": "AutoencoderKLWan",
        "base_dim": 2,
        "decoder_base_dim": 2,
        "z_dim": 16,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_scales": [],
        "temperal_downsample": [False, True, True],
    },
    "2.2": {
        "_class_name": "AutoencoderKLWan",
        "base_dim": 2,
        "decoder_base_dim": 3,
        "z_dim": 48,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_scales": [],
        "temperal_downsample": [False, True, True],
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "latents_mean": [0.5] * 48,
        "latents_std": [2.0] * 48,
    },
}


def transformer(version: str, *, image: bool = False) -> dict[str, Any]:
    """The config.json of a network with heads of 128 channels, as published ones."""
    channels = 16 if version == "2.1" else 48
    config = WAN | {
        "num_attention_heads": 1,
        "attention_head_dim": 128,
        "in_channels": 36 if image else channels,
        "out_channels": channels,
        "text_dim": ENCODER["d_model"],
        "rope_max_seq_len": 1024,
    }
    if image:
        config |= {"image_dim": CLIP["hidden_size"], "added_kv_proj_dim": 128}
    return config


def network(version: str, *, image: bool = False) -> dict[str, np.ndarray]:
    """Weights of a tiny network, by diffusers' keys."""
    stored = json.loads((FOLDER / "network_shapes.json").read_text())
    found = stored[f"{version} {'image' if image else 'text'}"]
    return random_weights({key: tuple(shape) for key, shape in found.items()})


def shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes by diffusers' (transformers') keys, of every component by its name."""
    stored = json.loads((FOLDER / "shapes.json").read_text())
    return {
        name: {key: tuple(shape) for key, shape in found.items()}
        for name, found in stored.items()
    }


def weights_of(name: str, found: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The weights of one component: bfloat16 numbers in float32."""
    make = vae_weights if name.startswith("vae") else random_weights
    upper = np.uint32(0xFFFF0000)
    return {
        key: (value.view(np.uint32) & upper).view(np.float32)
        for key, value in make(found).items()
    }


def write_diffusers_root(
    folder: Path, version: str, networks: dict[str, dict[str, np.ndarray]], image: bool
) -> Path:
    """A diffusers root with the networks, and the components of the golden files."""
    parts: dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]] = {
        name: (transformer(version, image=image), weights)
        for name, weights in networks.items()
    }
    known = shapes()
    others = {"vae": VAES[version], "text_encoder": ENCODER}
    if image:
        others["image_encoder"] = CLIP
    for name, config in others.items():
        key = f"vae_{version}" if name == "vae" else name
        parts[name] = (config, weights_of(key, known[key]))
    kind = "WanImageToVideoPipeline" if image else "WanPipeline"
    index: dict[str, Any] = {"_class_name": kind}
    if "transformer_2" in networks:
        index["boundary_ratio"] = 0.9 if image else 0.875
    if version == "2.2":
        index["expand_timesteps"] = True
    for name, (config, weights) in parts.items():
        (folder / name).mkdir(parents=True)
        index[name] = ["library", "class"]
        (folder / name / "config.json").write_text(json.dumps(config))
        stem = "model" if "architectures" in config else "diffusion_pytorch_model"
        save_file(weights, folder / name / f"{stem}.safetensors")
    index["tokenizer"] = ["transformers", "T5Tokenizer"]
    unpack("umt5", folder).rename(folder / "tokenizer")
    index["scheduler"] = ["diffusers", UNIPC["_class_name"]]
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(UNIPC))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
