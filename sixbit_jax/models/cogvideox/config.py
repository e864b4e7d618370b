"""Configuration of a CogVideoX transformer, read from diffusers' config.json."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

_FIXED = {
    "activation_fn": "gelu-approximate",
    "timestep_activation_fn": "silu",
}
_IGNORED = {"dropout"}


@dataclass(frozen=True)
class CogVideoXConfig:
    """Names, meanings and defaults are those of diffusers 0.42.

    Attributes:
      patch_size_t: None for CogVideoX 1.0, 2 for 1.5.
      ofs_embed_dim: width of the `ofs` embedding, only in CogVideoX1.5 I2V.
      sample_height, sample_width: training size in latent pixels.
      sample_frames: training length in video frames (before temporal compression).
    """

    num_attention_heads: int = 30
    attention_head_dim: int = 64
    in_channels: int = 16
    out_channels: int = 16
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    time_embed_dim: int = 512
    ofs_embed_dim: int | None = None
    text_embed_dim: int = 4096
    num_layers: int = 30
    attention_bias: bool = True
    sample_width: int = 90
    sample_height: int = 60
    sample_frames: int = 49
    patch_size: int = 2
    patch_size_t: int | None = None
    temporal_compression_ratio: int = 4
    max_text_seq_length: int = 226
    norm_elementwise_affine: bool = True
    norm_eps: float = 1e-5
    spatial_interpolation_scale: float = 1.875
    temporal_interpolation_scale: float = 1.0
    use_rotary_positional_embeddings: bool = False
    use_learned_positional_embeddings: bool = False
    patch_bias: bool = True

    def __post_init__(self):
        problems = []
        for name in ("num_attention_heads", "num_layers", "in_channels", "patch_size"):
            if getattr(self, name) < 1:
                problems.append(
                    f"{name}: expected at least 1, found {getattr(self, name)}"
                )
        if self.attention_head_dim % 16:
            problems.append(
                "attention_head_dim: expected a multiple of 16, found "
                f"{self.attention_head_dim}"
            )
        if (
            self.use_learned_positional_embeddings
            and not self.use_rotary_positional_embeddings
        ):
            problems.append(
                "use_learned_positional_embeddings: expected false without rotary "
                "embeddings (no such checkpoint exists), found true"
            )
        if problems:
            raise ValueError("CogVideoX config:\n  " + "\n  ".join(problems))

    @property
    def dim(self) -> int:
        """Width of the residual stream, D."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def sample_grid(self) -> tuple[int, int]:
        """(height, width) in tokens at the training size."""
        return (
            self.sample_height // self.patch_size,
            self.sample_width // self.patch_size,
        )

    @property
    def sample_latent_frames(self) -> int:
        """Latent frames at the training length."""
        return (self.sample_frames - 1) // self.temporal_compression_ratio + 1

    def token_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Token grid of latents of `frames` x `height` x `width`.

        Raises:
          ValueError: if the sizes are not multiples of the patch sizes.
        """
        patch_t = self.patch_size_t or 1
        if frames % patch_t or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"latents of {frames} frames of {height}x{width}: expected multiples "
                f"of {patch_t} frames and {self.patch_size} pixels"
            )
        return frames // patch_t, height // self.patch_size, width // self.patch_size

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CogVideoXConfig":
        """Reads the mapping of a diffusers `config.json`.

        Raises:
          ValueError: for values that the port does not support and for unknown keys;
            lists all of them.
        """
        known = {f.name for f in fields(cls)}
        problems = []
        chosen = {}
        for key, value in values.items():
            if key.startswith("_") or key in _IGNORED:
                continue
            if key in _FIXED:
                if value != _FIXED[key]:
                    problems.append(f"{key}: expected {_FIXED[key]!r}, found {value!r}")
            elif key in known:
                chosen[key] = value
            else:
                problems.append(f"{key}: not a key of a CogVideoX config")
        if problems:
            raise ValueError("CogVideoX config:\n  " + "\n  ".join(problems))
        return cls(**chosen)

    def to_dict(self) -> dict[str, Any]:
        """The mapping that diffusers writes, without its `_` keys."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | _FIXED
