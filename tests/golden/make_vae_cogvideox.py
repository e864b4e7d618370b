"""Makes the golden outputs of CogVideoX's autoencoder with PyTorch and diffusers.

Run from the repository root: `python -m tests.golden.make_vae_cogvideox`.
"""

import json

import torch
from diffusers import AutoencoderKLCogVideoX

from tests.golden.make_vae import make

TINY = {"latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 4}
CONFIGS = {
    # Four levels, two of them in time, as published.
    "four_levels": TINY | {"block_out_channels": (8, 16, 16, 24)},
    "three_levels": TINY | {"block_out_channels": (8, 8, 16), "norm_eps": 1e-4},
    "two_levels": TINY
    | {
        "block_out_channels": (8, 16),
        "temporal_compression_ratio": 2,
        "layers_per_block": 2,
    },
    "tiles": TINY
    | {
        "block_out_channels": (4, 8),
        "temporal_compression_ratio": 2,
        "sample_height": 24,
        "sample_width": 20,
    },
}
# (config, batch, latent frames, height, width; frames, height, width to encode).
CASES = [
    ("four_levels", 1, 3, 2, 3, 9, 17, 25),
    ("three_levels", 1, 5, 3, 4, 17, 14, 11),
    ("three_levels", 2, 1, 3, 2, 1, 8, 13),
    ("three_levels", 1, 4, 2, 3, 16, 8, 8),
    ("three_levels", 1, 2, 2, 2, 5, 10, 8),
    ("two_levels", 2, 3, 3, 4, 12, 7, 6),
    ("tiles", 1, 3, 11, 9, 9, 23, 19),
]


def main() -> None:
    """Makes every case."""
    torch.set_num_threads(1)
    for name, batch, *latents, frames, rows, columns in CASES:
        config = CONFIGS[name]
        levels = len(config["block_out_channels"])
        model = AutoencoderKLCogVideoX(
            **config,
            down_block_types=("CogVideoXDownBlock3D",) * levels,
            up_block_types=("CogVideoXUpBlock3D",) * levels,
        )
        count, height, width = latents
        report = make(
            "vae_cogvideox",
            f"{name}_f{count}_{height}x{width}_f{frames}_{rows}x{columns}",
            model,
            latent_shape=(batch, count, config["latent_channels"], height, width),
            video_shape=(batch, frames, 3, rows, columns),
            tiles={} if name == "tiles" else None,
        )
        print(json.dumps(report))


if __name__ == "__main__":
    main()
