"""Makes the golden outputs of the CogVideoX transformer with PyTorch and diffusers.

Run from the repository root: `python -m tests.golden.make_cogvideox`.
"""

import json
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel

from tests.golden.cases import FOLDER, make_inputs
from tests.golden.weights import random_weights

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 128,
    "text_embed_dim": 64,
    "num_layers": 2,
    "sample_width": 12,
    "sample_height": 8,
    "sample_frames": 17,
    "max_text_seq_length": 10,
}
ROTARY = {**TINY, "use_rotary_positional_embeddings": True}
CONFIGS = {
    "2b": TINY,
    "2b_short_text": {**TINY, "max_text_seq_length": 7},
    "5b": ROTARY,
    "5b_i2v": {
        **ROTARY,
        "in_channels": 8,
        "use_learned_positional_embeddings": True,
    },
    # As in the published 1.5 files: patch_bias is false, the bias exists all the same.
    "1_5": {
        **ROTARY,
        "patch_size_t": 2,
        "patch_bias": False,
        "sample_width": 20,
        "sample_height": 16,
        "sample_frames": 81,
    },
    "1_5_i2v": {
        **ROTARY,
        "in_channels": 8,
        "patch_size_t": 2,
        "patch_bias": False,
        "ofs_embed_dim": 128,
        "sample_width": 20,
        "sample_height": 16,
        "sample_frames": 81,
    },
}
# (config, latent frames of the video, height, width, text tokens). Sincos and learned
# tables hold exactly max_text_seq_length text rows; the learned one has one spatial
# size, and diffusers replaces it by sincos where the frame count differs.
CASES = [
    ("2b", 5, 8, 12, 10),
    ("2b", 1, 8, 12, 10),
    ("2b", 3, 12, 8, 10),
    ("2b", 13, 6, 10, 10),
    ("2b_short_text", 5, 10, 6, 7),
    ("5b", 5, 8, 12, 10),
    ("5b", 1, 12, 8, 7),
    ("5b", 3, 6, 10, 3),
    ("5b", 13, 10, 14, 1),
    ("5b_i2v", 5, 8, 12, 10),
    ("5b_i2v", 1, 8, 12, 10),
    ("5b_i2v", 3, 8, 12, 10),
    ("1_5", 5, 8, 12, 10),
    ("1_5", 1, 16, 20, 7),
    ("1_5", 3, 6, 10, 3),
    ("1_5", 13, 10, 6, 11),
    ("1_5_i2v", 3, 8, 12, 10),
    ("1_5_i2v", 5, 10, 6, 5),
    ("1_5_i2v", 13, 6, 8, 10),
]
BATCH = 2


def padded_frames(frames: int, patch_size_t: int | None) -> int:
    """Latent frames after the pipeline's padding to a multiple of patch_size_t."""
    if patch_size_t is None:
        return frames
    return -(-frames // patch_size_t) * patch_size_t


def rotary(model: CogVideoXTransformer3DModel, frames: int, height: int, width: int):
    """cos, sin as the pipeline itself makes them, or None."""
    if not model.config.use_rotary_positional_embeddings:
        return None
    pipeline = SimpleNamespace(vae_scale_factor_spatial=8, transformer=model)
    return CogVideoXPipeline._prepare_rotary_positional_embeddings(
        pipeline, height * 8, width * 8, frames, torch.device("cpu")
    )


def run(model: CogVideoXTransformer3DModel, inputs, dtype: torch.dtype) -> np.ndarray:
    """The transformer's output at a precision."""
    _, frames, _, height, width = inputs.latents.shape
    with torch.no_grad():
        output = model.to(dtype)(
            hidden_states=torch.from_numpy(inputs.latents).to(dtype),
            encoder_hidden_states=torch.from_numpy(inputs.text).to(dtype),
            timestep=torch.from_numpy(inputs.timestep),
            ofs=None if inputs.ofs is None else torch.from_numpy(inputs.ofs),
            image_rotary_emb=rotary(model, frames, height, width),
            return_dict=False,
        )[0]
    return output.numpy()


def make(
    config_name: str, frames: int, height: int, width: int, tokens: int
) -> dict[str, Any]:
    """Run one case, write its file, and return what to print about it."""
    model = CogVideoXTransformer3DModel(**CONFIGS[config_name]).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    weights = {
        key: torch.from_numpy(value) for key, value in random_weights(shapes).items()
    }
    model.load_state_dict(weights, strict=True)
    config = {
        "_class_name": "CogVideoXTransformer3DModel",
        "_diffusers_version": diffusers.__version__,
    } | {key: value for key, value in model.config.items() if key[0] != "_"}
    latent_shape = (
        BATCH,
        padded_frames(frames, config["patch_size_t"]),
        config["in_channels"],
        height,
        width,
    )
    inputs = make_inputs(config, latent_shape, tokens)
    output = run(model, inputs, torch.float32)
    exact = run(model, inputs, torch.float64)
    error = np.linalg.norm(output - exact) / np.linalg.norm(exact)

    name = f"{config_name}_f{frames}_{height}x{width}_t{tokens}"
    meta = {
        "config": config,
        "shapes": shapes,
        "latent_shape": latent_shape,
        "text_tokens": tokens,
    }
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(
        FOLDER / f"{name}.npz", meta=np.array(json.dumps(meta)), output=output
    )
    return {"case": name, "std": float(output.std()), "float64_error": float(error)}


def main() -> None:
    """Make every case."""
    torch.set_num_threads(1)
    for case in CASES:
        print(json.dumps(make(*case)))


if __name__ == "__main__":
    main()
