"""Makes the golden outputs of HunyuanVideo's autoencoder with PyTorch and diffusers.

Run from the repository root: `python -m tests.golden.make_vae_hunyuan_video`.
"""

import json

import torch
from diffusers import AutoencoderKLHunyuanVideo

from tests.golden.make_vae import make

TINY = {"latent_channels": 2, "layers_per_block": 1, "norm_num_groups": 4}
CONFIGS = {
    # Four levels, the last three in space, the middle two in time, as published.
    "four_levels": TINY | {"block_out_channels": (4, 8, 8, 12), "latent_channels": 4},
    "three_levels": TINY
    | {"block_out_channels": (4, 8, 8), "spatial_compression_ratio": 4},
    "no_attention": TINY
    | {
        "block_out_channels": (4, 8, 8),
        "spatial_compression_ratio": 2,
        "mid_block_add_attention": False,
    },
    "tiles": TINY
    | {
        "block_out_channels": (4, 4, 8),
        "spatial_compression_ratio": 4,
        "layers_per_block": 1,
    },
}
# Windows begin at 5 latent frames and at 17 frames.
# (config, batch, latent frames, height, width; frames, height, width to encode).
CASES = [
    ("four_levels", 1, 2, 2, 3, 9, 17, 25),
    ("three_levels", 2, 1, 2, 3, 1, 9, 8),
    ("three_levels", 1, 5, 2, 2, 17, 8, 10),
    ("three_levels", 1, 8, 1, 2, 30, 5, 8),
    ("no_attention", 1, 7, 2, 2, 25, 6, 4),
    ("tiles", 1, 5, 5, 3, 17, 23, 12),
]
# Of the tiled case, in pixels.
TILES = {
    "tile_sample_min_height": 16,
    "tile_sample_min_width": 16,
    "tile_sample_stride_height": 12,
    "tile_sample_stride_width": 12,
}


def main() -> None:
    """Makes every case."""
    torch.set_num_threads(1)
    for name, batch, *latents, frames, rows, columns in CASES:
        config = CONFIGS[name]
        levels = len(config["block_out_channels"])
        model = AutoencoderKLHunyuanVideo(
            **config,
            down_block_types=("HunyuanVideoDownBlock3D",) * levels,
            up_block_types=("HunyuanVideoUpBlock3D",) * levels,
        )
        count, height, width = latents
        report = make(
            "vae_hunyuan_video",
            f"{name}_f{count}_{height}x{width}_f{frames}_{rows}x{columns}",
            model,
            latent_shape=(batch, count, config["latent_channels"], height, width),
            video_shape=(batch, frames, 3, rows, columns),
            tiles=TILES if name == "tiles" else None,
        )
        print(json.dumps(report))


if __name__ == "__main__":
    main()
