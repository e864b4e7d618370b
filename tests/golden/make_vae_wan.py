"""Makes the golden outputs of the Wan autoencoder with PyTorch and diffusers.

Run from the repository root: `python -m tests.golden.make_vae_wan`.
"""

import json
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKLWan

from tests.golden.vae_wan_cases import FOLDER, make_input, sample, vae_weights

TINY = {
    "base_dim": 8,
    "z_dim": 4,
    "num_res_blocks": 1,
    "latents_mean": [0.1, -0.2, 0.3, 0.0],
    "latents_std": [1.5, 0.5, 2.0, 1.0],
}
RESIDUAL = {
    **TINY,
    "is_residual": True,
    "decoder_base_dim": 12,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}
CONFIGS = {
    "21": TINY,
    # As many blocks as published, a decoder wider than the encoder.
    "21_two": {**TINY, "num_res_blocks": 2, "decoder_base_dim": 16},
    # Another order of the steps in time, and a plain step from the first to the last.
    "21_order": {
        **TINY,
        "dim_mult": [1, 1, 2, 4],
        "temperal_downsample": [True, False, True],
    },
    "22": RESIDUAL,
    "22_two": {**RESIDUAL, "num_res_blocks": 2, "base_dim": 4},
    "22_order": {**RESIDUAL, "temperal_downsample": [True, True, False]},
}
SMALL_TILES = {"min_height": 32, "min_width": 48, "stride_height": 24}
SMALL_TILES |= {"stride_width": 32}
LARGE_TILES = {"min_height": 64, "min_width": 64, "stride_height": 32}
LARGE_TILES |= {"stride_width": 48}
# (config, half, frames of what goes in, its height and width, tiles)
CASES = [
    *(("21", "decode", frames, 2, 3, None) for frames in (1, 2, 4)),
    ("21_two", "decode", 3, 5, 3, None),
    ("21_order", "decode", 3, 2, 3, None),
    ("21", "decode", 2, 7, 13, SMALL_TILES),
    *(("22", "decode", frames, 1, 3, None) for frames in (1, 3)),
    ("22_two", "decode", 2, 3, 2, None),
    ("22_order", "decode", 3, 2, 1, None),
    ("22", "decode", 2, 2, 7, LARGE_TILES),
    *(("21", "encode", frames, 16, 24, None) for frames in (1, 5, 13)),
    ("21_two", "encode", 9, 27, 19, None),
    ("21_order", "encode", 5, 16, 24, None),
    ("21", "encode", 5, 56, 32, SMALL_TILES),
    *(("22", "encode", frames, 32, 48, None) for frames in (1, 9)),
    ("22_two", "encode", 5, 48, 32, None),
    ("22_order", "encode", 9, 16, 32, None),
    ("22", "encode", 5, 32, 176, LARGE_TILES),
]
BATCH = 2


def run(
    model: AutoencoderKLWan, half: str, given: np.ndarray, dtype: torch.dtype
) -> np.ndarray:
    """The output at a precision, frames before channels."""
    x = torch.from_numpy(given).to(dtype).transpose(1, 2)
    model = model.to(dtype)
    with torch.no_grad():
        if half == "decode":
            output = model.decode(x).sample
        else:
            found = model.encode(x).latent_dist
            output = torch.cat([found.mean, found.logvar], 1)
    return output.transpose(1, 2).contiguous().numpy()


def make(
    config_name: str,
    half: str,
    frames: int,
    height: int,
    width: int,
    tiles: dict[str, int] | None,
) -> dict[str, Any]:
    """Run one case, write its file, and return what to print about it."""
    model = AutoencoderKLWan(**CONFIGS[config_name]).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    weights = {
        key: torch.from_numpy(value) for key, value in vae_weights(shapes).items()
    }
    model.load_state_dict(weights, strict=True)
    tiling = tiles and {f"tile_sample_{key}": value for key, value in tiles.items()}
    if tiling:
        model.enable_tiling(**tiling)
    config = {
        "_class_name": "AutoencoderKLWan",
        "_diffusers_version": diffusers.__version__,
    } | {key: value for key, value in model.config.items() if key[0] != "_"}
    channels = config["z_dim"] if half == "decode" else 3
    shape = (1 if tiles else BATCH, frames, channels, height, width)
    given = make_input(half, shape)
    output = run(model, half, given, torch.float32)
    exact = run(model, half, given, torch.float64)
    error = np.linalg.norm(output - exact) / np.linalg.norm(exact)
    meta = {
        "config": config,
        "shapes": shapes,
        "half": half,
        "input_shape": shape,
        "output_shape": output.shape,
        "tiling": tiling,
    }
    tiled = "_tiled" if tiles else ""
    name = f"{config_name}_f{frames}_{height}x{width}{tiled}_{half}"
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(
        FOLDER / f"{name}.npz", meta=np.array(json.dumps(meta)), values=sample(output)
    )
    clipped = float((np.abs(output) >= 1).mean()) if half == "decode" else 0.0
    return {
        "case": name,
        "std": float(output.std()),
        "clipped": clipped,
        "float64_error": float(error),
    }


def main() -> None:
    """Make every case."""
    torch.set_num_threads(1)
    for case in CASES:
        print(json.dumps(make(*case)))


if __name__ == "__main__":
    main()
