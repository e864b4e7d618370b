"""Configuration of CogVideoX's video autoencoder, read from diffusers' config.json."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sixbit_jax.vae.levels_config import LevelsConfig

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
# `force_upcast` is about other pipelines: the dtype is an argument here.
_IGNORED = {"force_upcast"}


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

    title: ClassVar[str] = "CogVideoX VAE"
    constants: ClassVar[Mapping[str, Any]] = _FIXED
    blocks: ClassVar[Mapping[str, str]] = _BLOCKS
    ignored: ClassVar[Collection[str]] = _IGNORED

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
        if not self.block_out_channels:
            problems.append("block_out_channels: expected at least one level, found []")
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
        ratio = self.temporal_compression_ratio
        if ratio < 1 or ratio != 2 ** round(math.log2(max(ratio, 1))):
            problems.append(
                f"temporal_compression_ratio: expected a power of two, found {ratio}"
            )
        elif self.time_levels >= max(len(self.block_out_channels), 1):
            problems.append(
                f"temporal_compression_ratio: expected at most "
                f"{2 ** (len(self.block_out_channels) - 1)} with "
                f"{len(self.block_out_channels)} levels, found {ratio}"
            )
        if not self.scaling_factor > 0:
            problems.append(
                f"scaling_factor: expected more than 0, found {self.scaling_factor}"
            )
        if problems:
            raise ValueError("CogVideoX VAE config:\n  " + "\n  ".join(problems))

    @property
    def time_levels(self) -> int:
        """Levels that halve the frames."""
        return round(math.log2(self.temporal_compression_ratio))

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent pixel, of height and of width."""
        return 2 ** (len(self.block_out_channels) - 1)
