"""Configuration of a HunyuanVideo transformer, read from diffusers' config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sixbit_jax.config_schema import (
    FileConfig,
    Schema,
    as_many_as,
    boolean,
    choice,
    fixed,
    integer,
    number,
    optional,
    sequence,
)

_FIXED = {"qk_norm": "rms_norm"}
# Widths and lengths beyond what any network has, and far from what hangs.
_WIDTH = integer(1, 65536)
_LAYERS = integer(1, 1024)
IMAGE_CHANNELS = 1
"""Channels of the mask that latent_concat adds to the image latents."""


def _dim(config: "HunyuanVideoConfig") -> str | None:
    if config.dim <= 65536:
        return None
    return (
        "num_attention_heads x attention_head_dim: expected at most 65536, found "
        f"{config.dim}"
    )


def _axes(config: "HunyuanVideoConfig") -> str | None:
    if sum(config.rope_axes_dim) == config.attention_head_dim:
        return None
    return (
        f"rope_axes_dim: expected a sum of attention_head_dim "
        f"{config.attention_head_dim}, found {list(config.rope_axes_dim)}"
    )


def _hidden(config: "HunyuanVideoConfig") -> str | None:
    if 1 <= config.hidden <= 2**20:
        return None
    return (
        f"mlp_ratio: expected a feed-forward of 1 to {2**20} channels, found "
        f"{config.hidden}"
    )


def _channels(config: "HunyuanVideoConfig") -> str | None:
    expected = config.out_channels
    if config.image_condition_type == "latent_concat":
        expected = 2 * config.out_channels + IMAGE_CHANNELS
    if config.in_channels == expected:
        return None
    return (
        f"in_channels: expected {expected} with out_channels {config.out_channels} and "
        f"image_condition_type {config.image_condition_type}, found "
        f"{config.in_channels}"
    )


_HEADS = ("num_attention_heads", "attention_head_dim")
_SCHEMA = Schema(
    "HunyuanVideo config",
    {
        "in_channels": integer(1, 8192),
        "out_channels": integer(1, 4096),
        "num_attention_heads": integer(1, 1024),
        "attention_head_dim": integer(6, 1024, multiple_of=2),
        "num_layers": _LAYERS,
        "num_single_layers": _LAYERS,
        "num_refiner_layers": _LAYERS,
        "mlp_ratio": number(1e-3, 1024),
        "patch_size": integer(1, 64),
        "patch_size_t": integer(1, 64),
        "guidance_embeds": boolean(),
        "text_embed_dim": _WIDTH,
        "pooled_projection_dim": _WIDTH,
        "rope_theta": number(1, 1e9),
        "rope_axes_dim": sequence(integer(2, 1024, multiple_of=2), length=3),
        "image_condition_type": optional(choice("latent_concat", "token_replace")),
    },
    {name: fixed(value) for name, value in _FIXED.items()},
    relations={
        _HEADS: _dim,
        ("rope_axes_dim", "attention_head_dim"): _axes,
        (*_HEADS, "mlp_ratio"): _hidden,
        ("in_channels", "out_channels", "image_condition_type"): _channels,
    },
)


@dataclass(frozen=True)
class HunyuanVideoConfig(FileConfig):
    """Names, meanings and defaults are those of diffusers 0.42.

    Attributes:
      in_channels: 16, or 33 for latent_concat: latents, image latents, mask.
      num_layers: dual blocks, where video and text have weights of their own.
      num_single_layers: single blocks after them.
      num_refiner_layers: blocks over the text alone.
      mlp_ratio: width of the feed-forwards over D.
      patch_size, patch_size_t: sides and frames of a token.
      guidance_embeds: whether the network reads a guidance scale.
      text_embed_dim: E, of the prompt embeddings.
      pooled_projection_dim: P, of the pooled embedding.
      rope_axes_dim: channels of a head for frames, rows and columns.
      image_condition_type: how I2V networks are given their image: as channels
        (latent_concat), or as the tokens of the first frame (token_replace).
    """

    schema: ClassVar[Schema] = _SCHEMA
    constants: ClassVar[Mapping[str, Any]] = _FIXED

    in_channels: int = 16
    out_channels: int = 16
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    num_layers: int = 20
    num_single_layers: int = 40
    num_refiner_layers: int = 2
    mlp_ratio: float = 4.0
    patch_size: int = 2
    patch_size_t: int = 1
    guidance_embeds: bool = True
    text_embed_dim: int = 4096
    pooled_projection_dim: int = 768
    rope_theta: float = 256.0
    rope_axes_dim: tuple[int, int, int] = (16, 56, 56)
    image_condition_type: Literal["latent_concat", "token_replace"] | None = None

    @property
    def dim(self) -> int:
        """Width of the residual stream, D."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def hidden(self) -> int:
        """Width of the feed-forwards."""
        return int(self.dim * self.mlp_ratio)

    @property
    def patch(self) -> tuple[int, int, int]:
        """(frames, rows, columns) of a token."""
        return self.patch_size_t, self.patch_size, self.patch_size

    def token_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Token grid of latents of `frames` x `height` x `width`.

        Raises:
          ValueError: if the sizes are not multiples of the patch sizes.
        """
        sizes, (p_t, p_h, p_w) = (frames, height, width), self.patch
        if any(s % p for s, p in zip(sizes, self.patch, strict=True)):
            raise ValueError(
                f"latents of {frames} frames of {height}x{width}: expected multiples "
                f"of {p_t} frames and {p_h}x{p_w} pixels"
            )
        return frames // p_t, height // p_h, width // p_w

    @classmethod
    def file_values(cls, values: Any) -> Any:
        """In diffusers' files null output channels are as many as go in."""
        return as_many_as("out_channels", "in_channels", values, cls.in_channels)
