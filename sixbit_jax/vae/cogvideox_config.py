"""Configuration of CogVideoX's video autoencoder, read from diffusers' config.json."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sixbit_jax.config_schema import Schema, boolean, integer, number, optional
from sixbit_jax.vae.levels_config import (
    FIELDS,
    SIDE,
    LevelsConfig,
    no_power_of_two,
    uneven_groups,
)

# What no published checkpoint has otherwise, and the port does not do.
_FIXED = {
    "act_fn": "silu",
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}
_BLOCKS = {
    "down_block_types": "CogVideoXDownBlock3D",
    "up_block_types": "CogVideoXUpBlock3D",
}
_WIDTHS, _RATIO = "block_out_channels", "temporal_compression_ratio"


def _levels(config: "CogVideoXVAEConfig") -> str | None:
    if config.block_out_channels:
        return None
    return f"{_WIDTHS}: expected at least one level, found []"


def _ratio(config: "CogVideoXVAEConfig") -> str | None:
    levels = len(config.block_out_channels)
    most = 2 ** max(levels - 1, 0)
    return no_power_of_two(_RATIO, config.temporal_compression_ratio, most, levels)


@dataclass(frozen=True)
class CogVideoXVAEConfig(LevelsConfig):
    """Names, meanings and defaults are those of diffusers 0.42.

    Attributes:
      block_out_channels: width per level, from pixels to latents; every level but the
        last halves height and width.
      layers_per_block: residual blocks per level of the encoder; the decoder has one
        more.
      norm_eps: of the encoder's residual blocks; all other norms have 1e-6.
      temporal_compression_ratio: 1, 2, 4, ...: the first levels halve the frames.
      sample_height, sample_width: training size in pixels; tiles are half of it.
      scaling_factor: latents of the transformer are latents of the model times it.
      invert_scale_latents: an image's latents are divided by it instead (the
        pipelines of CogVideoX 1.5 from a picture).
    """

    schema: ClassVar[Schema] = Schema(
        "CogVideoX VAE config",
        FIELDS
        | {
            "norm_eps": number(0, 1),
            _RATIO: integer(1, 1024),
            "sample_height": SIDE,
            "sample_width": SIDE,
            "invert_scale_latents": boolean(),
        },
        # About other pipelines: the dtype is an argument here.
        {"force_upcast": optional(boolean())},
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
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    latent_channels: int = 16
    layers_per_block: int = 3
    norm_eps: float = 1e-6
    norm_num_groups: int = 32
    temporal_compression_ratio: int = 4
    sample_height: int = 480
    sample_width: int = 720
    scaling_factor: float = 1.15258426
    invert_scale_latents: bool = False

    @property
    def time_levels(self) -> int:
        """Levels that halve the frames."""
        return round(math.log2(self.temporal_compression_ratio))

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent pixel, of height and of width."""
        return 2 ** (len(self.block_out_channels) - 1)
