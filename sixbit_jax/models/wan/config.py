"""Configuration of a Wan transformer, read from diffusers' config.json."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

_FIXED = {"qk_norm": "rms_norm_across_heads"}
# Registered by older diffusers and used by none of their code.
_IGNORED = {"window_size", "add_img_emb"}


@dataclass(frozen=True)
class WanConfig:
    """Names, meanings and defaults are those of diffusers 0.42.

    Attributes:
      patch_size: (frames, rows, columns) of a token.
      in_channels: 16 for T2V, 36 for I2V (with mask and image latents), 48 for TI2V.
      image_dim: width of the image embeddings of Wan2.1 I2V, or None.
      added_kv_proj_dim: D where cross-attention reads image tokens, or None.
      rope_max_seq_len: longest axis of the token grid.
      pos_embed_seq_len: image tokens of first-and-last-frame models, or None.
    """

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

    def __post_init__(self):
        problems = []
        for name in (
            "num_attention_heads",
            "num_layers",
            "in_channels",
            "out_channels",
            "text_dim",
            "ffn_dim",
        ):
            if getattr(self, name) < 1:
                problems.append(
                    f"{name}: expected at least 1, found {getattr(self, name)}"
                )
        for name in ("attention_head_dim", "freq_dim"):
            if getattr(self, name) < 6 or getattr(self, name) % 2:
                problems.append(
                    f"{name}: expected an even number from 6, found "
                    f"{getattr(self, name)}"
                )
        if len(self.patch_size) != 3 or min(self.patch_size) < 1:
            problems.append(
                "patch_size: expected three positive numbers, found "
                f"{list(self.patch_size)}"
            )
        if (self.image_dim is None) != (self.added_kv_proj_dim is None):
            problems.append(
                "image_dim and added_kv_proj_dim: expected both or neither, found "
                f"{self.image_dim} and {self.added_kv_proj_dim}"
            )
        elif self.added_kv_proj_dim not in (None, self.dim):
            problems.append(
                f"added_kv_proj_dim: expected the width {self.dim}, found "
                f"{self.added_kv_proj_dim}"
            )
        if self.pos_embed_seq_len is not None and self.image_dim is None:
            problems.append("pos_embed_seq_len: expected image_dim with it, found none")
        if problems:
            raise ValueError("Wan config:\n  " + "\n  ".join(problems))

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
    def from_dict(cls, values: Mapping[str, Any]) -> "WanConfig":
        """Reads the mapping of a diffusers `config.json`.

        Raises:
          ValueError: for values that the port does not support and for unknown keys;
            lists all of them.
        """
        known = {f.name for f in fields(cls)}
        problems = []
        chosen: dict[str, Any] = {}
        for key, value in values.items():
            if key.startswith("_") or key in _IGNORED:
                continue
            if key in _FIXED:
                if value != _FIXED[key]:
                    problems.append(f"{key}: expected {_FIXED[key]!r}, found {value!r}")
            elif key in known:
                chosen[key] = tuple(value) if key == "patch_size" else value
            else:
                problems.append(f"{key}: not a key of a Wan config")
        if problems:
            raise ValueError("Wan config:\n  " + "\n  ".join(problems))
        if chosen.get("out_channels", 0) is None:
            # diffusers' "as many as go in".
            chosen["out_channels"] = chosen.get("in_channels", cls.in_channels)
        return cls(**chosen)

    def to_dict(self) -> dict[str, Any]:
        """The mapping that diffusers writes, without its `_` keys."""
        values = {f.name: getattr(self, f.name) for f in fields(self)} | _FIXED
        return values | {"patch_size": list(self.patch_size)}
