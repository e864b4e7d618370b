"""Configuration of a Wan transformer, read from diffusers' config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sixbit_jax.config_schema import (
    FileConfig,
    Schema,
    as_many_as,
    boolean,
    fixed,
    integer,
    number,
    optional,
    sequence,
)

_FIXED = {"qk_norm": "rms_norm_across_heads"}
# Widths and lengths beyond what any network has, and far from what hangs.
_WIDTH = integer(1, 65536)


def _dim(config: "WanConfig") -> str | None:
    if config.dim <= 65536:
        return None
    return (
        "num_attention_heads x attention_head_dim: expected at most 65536, found "
        f"{config.dim}"
    )


def _image(config: "WanConfig") -> str | None:
    if (config.image_dim is None) == (config.added_kv_proj_dim is None):
        return None
    return (
        "image_dim and added_kv_proj_dim: expected both or neither, found "
        f"{config.image_dim} and {config.added_kv_proj_dim}"
    )


def _added(config: "WanConfig") -> str | None:
    if config.added_kv_proj_dim in (None, config.dim):
        return None
    return (
        f"added_kv_proj_dim: expected the width {config.dim}, found "
        f"{config.added_kv_proj_dim}"
    )


def _positions(config: "WanConfig") -> str | None:
    if config.pos_embed_seq_len is None or config.image_dim is not None:
        return None
    return "pos_embed_seq_len: expected image_dim with it, found none"


_HEADS = ("num_attention_heads", "attention_head_dim")
_SCHEMA = Schema(
    "Wan config",
    {
        "patch_size": sequence(integer(1, 64), length=3),
        "num_attention_heads": integer(1, 1024),
        "attention_head_dim": integer(6, 1024, multiple_of=2),
        "in_channels": integer(1, 4096),
        "out_channels": integer(1, 4096),
        "text_dim": _WIDTH,
        "freq_dim": integer(6, 65536, multiple_of=2),
        "ffn_dim": integer(1, 2**20),
        "num_layers": integer(1, 1024),
        "cross_attn_norm": boolean(),
        "eps": number(1e-12, 1),
        "image_dim": optional(_WIDTH),
        "added_kv_proj_dim": optional(_WIDTH),
        "rope_max_seq_len": _WIDTH,
        "pos_embed_seq_len": optional(_WIDTH),
    },
    {name: fixed(value) for name, value in _FIXED.items()}
    # Registered by older diffusers and used by none of their code.
    | {
        "window_size": optional(sequence(integer(-1, 2**20), length=2)),
        "add_img_emb": optional(boolean()),
    },
    relations={
        _HEADS: _dim,
        ("image_dim", "added_kv_proj_dim"): _image,
        (*_HEADS, "added_kv_proj_dim"): _added,
        ("pos_embed_seq_len", "image_dim"): _positions,
    },
)


@dataclass(frozen=True)
class WanConfig(FileConfig):
    """Names, meanings and defaults are those of diffusers 0.42.

    Attributes:
      patch_size: (frames, rows, columns) of a token.
      in_channels: 16 for T2V, 36 for I2V (with mask and image latents), 48 for TI2V.
      image_dim: width of the image embeddings of Wan2.1 I2V, or None.
      added_kv_proj_dim: D where cross-attention reads image tokens, or None.
      rope_max_seq_len: longest axis of the token grid.
      pos_embed_seq_len: image tokens of first-and-last-frame models, or None.
    """

    schema: ClassVar[Schema] = _SCHEMA
    constants: ClassVar[Mapping[str, Any]] = _FIXED

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    eps: float = 1e-6
    image_dim: int | None = None
    added_kv_proj_dim: int | None = None
    rope_max_seq_len: int = 1024
    pos_embed_seq_len: int | None = None

    @property
    def dim(self) -> int:
        """Width of the residual stream, D."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def text_embed_dim(self) -> int:
        """Width of the prompt embeddings, E."""
        return self.text_dim

    def token_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Token grid of latents of `frames` x `height` x `width`.

        Raises:
          ValueError: if the sizes are not multiples of the patch sizes, or an axis of
            the grid is longer than the rotary table.
        """
        sizes = (frames, height, width)
        if any(s % p for s, p in zip(sizes, self.patch_size, strict=True)):
            p_t, p_h, p_w = self.patch_size
            raise ValueError(
                f"latents of {frames} frames of {height}x{width}: expected multiples "
                f"of {p_t} frames and {p_h}x{p_w} pixels"
            )
        t, h, w = (s // p for s, p in zip(sizes, self.patch_size, strict=True))
        if max(t, h, w) > self.rope_max_seq_len:
            raise ValueError(
                f"latents of {frames} frames of {height}x{width}: expected at most "
                f"{self.rope_max_seq_len} tokens along an axis, found {max(t, h, w)}"
            )
        return t, h, w

    @classmethod
    def file_values(cls, values: Any) -> Any:
        """In diffusers' files null output channels are as many as go in."""
        return as_many_as("out_channels", "in_channels", values, cls.in_channels)
