"""Makes the golden outputs of the Wan transformer with PyTorch and diffusers.

Run from the repository root: `python -m tests.golden.make_wan`.
"""

import json
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import WanTransformer3DModel

from tests.golden.wan_cases import FOLDER, WanInputs, make_inputs
from tests.golden.weights import random_weights

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 256,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
IMAGE = {**TINY, "in_channels": 9, "image_dim": 48, "added_kv_proj_dim": 128}
CONFIGS = {
    "t2v": TINY,
    # The published head width: 44 / 42 / 42 rotary channels.
    "t2v_128": {**TINY, "attention_head_dim": 128, "ffn_dim": 384},
    # Wan2.2-A14B: image latents as channels only.
    "i2v_22": {**TINY, "in_channels": 9},
    "i2v_21": IMAGE,
    # First-and-last-frame: two images, with positions of their own.
    "flf2v": {**IMAGE, "pos_embed_seq_len": 10},
    "ti2v": {**TINY, "in_channels": 6, "out_channels": 6},
    "plain_norm": {**TINY, "cross_attn_norm": False, "num_layers": 1},
}
# (config, latent frames, height, width, text tokens, image tokens, token timesteps).
# With image tokens, diffusers takes exactly the last 512 tokens for text.
CASES = [
    ("t2v", 3, 8, 12, 10, 0, False),
    ("t2v", 1, 6, 4, 3, 0, False),
    ("t2v", 5, 4, 10, 16, 0, False),
    ("t2v_128", 2, 8, 6, 7, 0, False),
    ("t2v_128", 4, 6, 8, 1, 0, False),
    ("i2v_22", 3, 6, 10, 5, 0, False),
    ("i2v_21", 3, 8, 6, 512, 5, False),
    ("i2v_21", 2, 4, 12, 512, 17, False),
    ("flf2v", 2, 6, 8, 512, 10, False),
    ("ti2v", 3, 8, 6, 9, 0, True),
    ("ti2v", 2, 6, 10, 4, 0, True),
    ("ti2v", 3, 4, 8, 4, 0, False),
    ("plain_norm", 2, 6, 8, 5, 0, False),
]
BATCH = 2


def run(
    model: WanTransformer3DModel, inputs: WanInputs, dtype: torch.dtype
) -> np.ndarray:
    """The transformer's output at a precision, frames before channels."""
    image = None if inputs.image is None else torch.from_numpy(inputs.image).to(dtype)
    if image is not None and model.config.pos_embed_seq_len is not None:
        # diffusers takes the two images as rows of the batch.
        image = image.reshape(2 * image.shape[0], -1, image.shape[-1])
    with torch.no_grad():
        output = model.to(dtype)(
            hidden_states=torch.from_numpy(inputs.latents).to(dtype).transpose(1, 2),
            timestep=torch.from_numpy(inputs.timestep),
            encoder_hidden_states=torch.from_numpy(inputs.text).to(dtype),
            encoder_hidden_states_image=image,
            return_dict=False,
        )[0]
    return output.transpose(1, 2).contiguous().numpy()


def make(
    config_name: str,
    frames: int,
    height: int,
    width: int,
    text_tokens: int,
    image_tokens: int,
    token_timesteps: bool,
) -> dict[str, Any]:
    """Run one case, write its file, and return what to print about it."""
    model = WanTransformer3DModel(**CONFIGS[config_name]).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    weights = {
        key: torch.from_numpy(value) for key, value in random_weights(shapes).items()
    }
    model.load_state_dict(weights, strict=True)
    config = {
        "_class_name": "WanTransformer3DModel",
        "_diffusers_version": diffusers.__version__,
    } | {key: value for key, value in model.config.items() if key[0] != "_"}
    meta = {
        "latent_shape": (BATCH, frames, config["in_channels"], height, width),
        "text_tokens": text_tokens,
        "image_tokens": image_tokens,
        "token_timesteps": token_timesteps,
    }
    inputs = make_inputs(config, **meta)
    output = run(model, inputs, torch.float32)
    exact = run(model, inputs, torch.float64)
    error = np.linalg.norm(output - exact) / np.linalg.norm(exact)

    kind = "tokens" if token_timesteps else "rows"
    name = f"{config_name}_f{frames}_{height}x{width}_t{text_tokens}_{kind}"
    meta |= {"config": config, "shapes": shapes}
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
