"""Configuration of CogVideoX's video autoencoder, read from diffusers' config.json."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from sixbit_jax.config_schema import (
    Check,
    Schema,
    boolean,
    choice,
    fixed,
    integer,
    number,
    optional,
    sequence,
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
_CHANNELS = integer(1, 4096)
_SIDE = integer(1, 65536)
_RATIO = "temporal_compression_ratio"


def _levels(config: "CogVideoXVAEConfig") -> str | None:
    if config.block_out_channels:
        return None
    return "block_out_channels: expected at least one level, found []"


def _groups(config: "CogVideoXVAEConfig") -> str | None:
    groups = config.norm_num_groups
    uneven = [width for width in config.block_out_channels if width % groups]
    if not uneven:
        return None
    return (
        f"block_out_channels: expected multiples of norm_num_groups ({groups}), found "
        f"{uneven}"
    )


def _ratio(config: "CogVideoXVAEConfig") -> str | None:
    ratio, levels = config.temporal_compression_ratio, len(config.block_out_channels)
    if ratio & (ratio - 1):
        return f"{_RATIO}: expected a power of two, found {ratio}"
    if config.time_levels < max(levels, 1):
        return None
    return (
        f"{_RATIO}: expected at most {2 ** (levels - 1)} with {levels} levels, found "
        f"{ratio}"
    )


_SCHEMA = Schema(
    "CogVideoX VAE config",
    {
        "in_channels": _CHANNELS,
        "out_channels": _CHANNELS,
        "block_out_channels": sequence(_SIDE, at_most=16),
        "latent_channels": _CHANNELS,
        "layers_per_block": integer(1, 64),
        "norm_eps": number(0, 1),
        "norm_num_groups": _CHANNELS,
        _RATIO: integer(1, 1024),
        "sample_height": _SIDE,
        "sample_width": _SIDE,
        "scaling_factor": number(0, 1e6, above=True),
        "invert_scale_latents": boolean(),
    },
    {name: fixed(value) for name, value in _FIXED.items()}
    # About other pipelines: the dtype is an argument here.
    | {"force_upcast": optional(boolean())},
    relations={
        ("block_out_channels",): _levels,
        ("block_out_channels", "norm_num_groups"): _groups,
        (_RATIO, "block_out_channels"): _ratio,
    },
)


def _blocks(levels: int) -> dict[str, Check]:
    """One name of a block per level."""
    return {key: sequence(choice(name), length=levels) for key, name in _BLOCKS.items()}


@dataclass(frozen=True)
class CogVideoXVAEConfig:
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
        _SCHEMA.check(self)

    @property
    def time_levels(self) -> int:
        """Levels that halve the frames."""
        return round(math.log2(self.temporal_compression_ratio))

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent pixel, of height and of width."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CogVideoXVAEConfig":
        """Reads the mapping of a diffusers `config.json`.

        Raises:
          ValueError: for values that the port does not support and for unknown keys;
            lists all of them.
        """
        schema = _SCHEMA
        if isinstance(values, Mapping):
            widths = values.get("block_out_channels", cls.block_out_channels)
            levels = len(widths) if isinstance(widths, list | tuple) else 0
            schema = replace(schema, others=schema.others | _blocks(levels))
        return schema.read(values, cls)

    def to_dict(self) -> dict[str, Any]:
        """The mapping that diffusers writes, without its `_` keys."""
        levels = len(self.block_out_channels)
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        own["block_out_channels"] = list(self.block_out_channels)
        return own | _FIXED | {key: [name] * levels for key, name in _BLOCKS.items()}
