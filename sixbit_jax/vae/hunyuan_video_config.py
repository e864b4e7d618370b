"""Configuration of HunyuanVideo's video autoencoder, read from diffusers' files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sixbit_jax.config_schema import Schema, boolean, integer
from sixbit_jax.vae.levels_config import (
    FIELDS,
    LevelsConfig,
    no_power_of_two,
    uneven_groups,
)

# What no published checkpoint has otherwise, and the port does not do.
_FIXED = {"act_fn": "silu", "temporal_compression_ratio": 4}
_BLOCKS = {
    "down_block_types": "HunyuanVideoDownBlock3D",
    "up_block_types": "HunyuanVideoUpBlock3D",
}
_TIME_LEVELS = 2
_WIDTHS, _RATIO = "block_out_channels", "spatial_compression_ratio"


def _levels(config: "HunyuanVideoVAEConfig") -> str | None:
    levels = len(config.block_out_channels)
    if levels > _TIME_LEVELS:
        return None
    return f"{_WIDTHS}: expected at least {_TIME_LEVELS + 1} levels, found {levels}"


def _ratio(config: "HunyuanVideoVAEConfig") -> str | None:
    levels = len(config.block_out_channels)
    return no_power_of_two(_RATIO, config.spatial_compression_ratio, 2**levels, levels)


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

    schema: ClassVar[Schema] = Schema(
        "HunyuanVideo VAE config",
        FIELDS | {_RATIO: integer(1, 65536), "mid_block_add_attention": boolean()},
        relations={
            (_WIDTHS,): _levels,
            (_WIDTHS, "norm_num_groups"): uneven_groups,
            (_RATIO, _WIDTHS): _ratio,
        },
    )
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
