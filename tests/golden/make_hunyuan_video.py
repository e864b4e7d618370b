"""Makes the golden outputs of the HunyuanVideo transformer with PyTorch and diffusers.

Run from the repository root: `python -m tests.golden.make_hunyuan_video`.
"""

import json
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoTransformer3DModel

from tests.golden.hunyuan_video_cases import FOLDER, HunyuanVideoInputs, make_inputs
from tests.golden.weights import random_weights

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_refiner_layers": 2,
    "mlp_ratio": 2.0,
    "text_embed_dim": 32,
    "pooled_projection_dim": 16,
    "rope_axes_dim": (16, 24, 24),
}
CONFIGS = {
    "t2v": TINY,
    # The published head width, axes and ratio.
    "t2v_128": {
        **TINY,
        "attention_head_dim": 128,
        "rope_axes_dim": (16, 56, 56),
        "mlp_ratio": 4.0,
        "num_layers": 1,
        "num_refiner_layers": 1,
    },
    "no_guidance": {**TINY, "guidance_embeds": False, "rope_theta": 10_000.0},
    "patch_t": {**TINY, "patch_size_t": 2, "num_single_layers": 3, "num_layers": 1},
    "token_replace": {**TINY, "image_condition_type": "token_replace"},
    "latent_concat": {
        **TINY,
        "in_channels": 9,
        "guidance_embeds": False,
        "image_condition_type": "latent_concat",
    },
}
# (config, latent frames, height, width, text tokens, of which no padding).
CASES = [
    ("t2v", 3, 8, 12, 10, (10, 4)),
    ("t2v", 1, 6, 4, 3, (1, 2)),
    ("t2v", 5, 4, 10, 16, (7, 16)),
    ("t2v_128", 2, 8, 6, 7, (3, 7)),
    ("t2v_128", 4, 6, 8, 5, (5, 5)),
    ("no_guidance", 3, 6, 10, 5, (2, 5)),
    ("patch_t", 4, 6, 8, 6, (6, 1)),
    ("token_replace", 3, 8, 6, 9, (9, 5)),
    ("token_replace", 2, 4, 12, 4, (2, 3)),
    ("latent_concat", 3, 6, 8, 8, (4, 8)),
    ("latent_concat", 2, 8, 4, 5, (5, 1)),
]
BATCH = 2


def run(
    model: HunyuanVideoTransformer3DModel,
    inputs: HunyuanVideoInputs,
    dtype: torch.dtype,
) -> np.ndarray:
    """The transformer's output at a precision, frames before channels."""
    guidance = inputs.guidance
    with torch.no_grad():
        output = model.to(dtype)(
            hidden_states=torch.from_numpy(inputs.latents).to(dtype).transpose(1, 2),
            timestep=torch.from_numpy(inputs.timestep),
            encoder_hidden_states=torch.from_numpy(inputs.text).to(dtype),
            encoder_attention_mask=torch.from_numpy(inputs.mask),
            pooled_projections=torch.from_numpy(inputs.pooled).to(dtype),
            guidance=None if guidance is None else torch.from_numpy(guidance) * 1000.0,
            return_dict=False,
        )[0]
    return output.transpose(1, 2).contiguous().numpy()


def make(
    config_name: str,
    frames: int,
    height: int,
    width: int,
    text_tokens: int,
    text_lengths: tuple[int, ...],
) -> dict[str, Any]:
    """Run one case, write its file, and return what to print about it."""
    model = HunyuanVideoTransformer3DModel(**CONFIGS[config_name]).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    weights = {
        key: torch.from_numpy(value) for key, value in random_weights(shapes).items()
    }
    model.load_state_dict(weights, strict=True)
    config = {
        "_class_name": "HunyuanVideoTransformer3DModel",
        "_diffusers_version": diffusers.__version__,
    } | {key: value for key, value in model.config.items() if key[0] != "_"}
    meta = {
        "latent_shape": (BATCH, frames, config["in_channels"], height, width),
        "text_lengths": text_lengths,
        "text_tokens": text_tokens,
    }
    inputs = make_inputs(config, **meta)
    output = run(model, inputs, torch.float32)
    exact = run(model, inputs, torch.float64)
    error = np.linalg.norm(output - exact) / np.linalg.norm(exact)

    name = f"{config_name}_f{frames}_{height}x{width}_t{text_tokens}"
    meta |= {"config": config, "shapes": shapes}
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(
        FOLDER / f"{name}.npz", meta=np.array(json.dumps(meta)), output=output
    )
    return {"case": name, "std": float(output.std()), "float64_error": float(error)}


def make_timesteps() -> None:
    """Write what the pipeline's scheduler makes of the sigmas it is given."""
    found = {}
    for steps in (1, 7, 50):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
        sigmas = np.linspace(1.0, 0.0, steps + 1)[:-1]
        scheduler.set_timesteps(sigmas=sigmas)
        found[f"timesteps_{steps}"] = scheduler.timesteps.numpy()
        found[f"sigmas_{steps}"] = scheduler.sigmas.numpy()
    np.savez_compressed(FOLDER / "schedule.npz", **found)


def main() -> None:
    """Make every case."""
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    make_timesteps()
    for case in CASES:
        print(json.dumps(make(*case)))


if __name__ == "__main__":
    main()
