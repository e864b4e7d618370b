"""Configuration of HunyuanVideo's video autoencoder, read from diffusers' files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sixbit_jax.vae.levels_config import LevelsConfig

# What no published checkpoint has otherwise, and the port does not do.
_FIXED = {"act_fn": "silu", "temporal_compression_ratio": 4}
_BLOCKS = {
    "down_block_types": "HunyuanVideoDownBlock3D",
    "up_block_types": "HunyuanVideoUpBlock3D",
}
_TIME_LEVELS = 2


@dataclass(frozen=True)
class HunyuanVideoVAEConfig(LevelsConfig):
    """Names, meanings and defaults are those of diffusers 0.42.

    Attributes:
      block_out_channels: width per level, from pixels to latents.
      layers_per_block: residual blocks per level of the encoder; the decoder has one
        more.
      scaling_factor: latents of the transformer are latents of the model times it.
      spatial_compression_ratio: a power of two: the first levels halve both sides.
      mid_block_add_attention: whether the middle attends over all tokens.
    """

    title: ClassVar[str] = "HunyuanVideo VAE"
    constants: ClassVar[Mapping[str, Any]] = _FIXED
    blocks: ClassVar[Mapping[str, str]] = _BLOCKS

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.476986
    spatial_compression_ratio: int = 8
    mid_block_add_attention: bool = True

    def __post_init__(self):
        object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        problems = []
        for name in (
            "in_channels",
            "out_channels",
            "latent_channels",
            "layers_per_block",
            "norm_num_groups",
        ):
            if getattr(self, name) < 1:
                problems.append(
                    f"{name}: expected at least 1, found {getattr(self, name)}"
                )
        levels = len(self.block_out_channels)
        if levels <= _TIME_LEVELS:
            problems.append(
                f"block_out_channels: expected at least {_TIME_LEVELS + 1} levels, "
                f"found {levels}"
            )
        uneven = [
            width
            for width in self.block_out_channels
            if width < 1 or width % max(self.norm_num_groups, 1)
        ]
        if uneven:
            problems.append(
                "block_out_channels: expected multiples of norm_num_groups "
                f"({self.norm_num_groups}), found {uneven}"
            )
        ratio = self.spatial_compression_ratio
        if ratio < 1 or ratio != 2 ** round(math.log2(max(ratio, 1))):
            problems.append(
                f"spatial_compression_ratio: expected a power of two, found {ratio}"
            )
        elif self.spatial_levels > levels:
            problems.append(
                f"spatial_compression_ratio: expected at most {2**levels} with "
                f"{levels} levels, found {ratio}"
            )
        if not self.scaling_factor > 0:
            problems.append(
                f"scaling_factor: expected more than 0, found {self.scaling_factor}"
            )
        if problems:
            raise ValueError("HunyuanVideo VAE config:\n  " + "\n  ".join(problems))

    @property
    def spatial_levels(self) -> int:
        """Levels that halve height and width."""
        return round(math.log2(self.spatial_compression_ratio))

    @property
    def temporal_compression_ratio(self) -> int:
        """Frames per latent frame, the first one apart."""
        return 2**_TIME_LEVELS

    def factors(self, level: int) -> tuple[int, int]:
        """By how much a level changes (frames, sides); the same for both directions."""
        last = len(self.block_out_channels) - 1
        time = last - _TIME_LEVELS <= level < last
        return 2 if time else 1, 2 if level < self.spatial_levels else 1
