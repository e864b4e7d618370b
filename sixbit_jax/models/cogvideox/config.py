"""Configuration of a CogVideoX transformer, read from diffusers' config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sixbit_jax.config_schema import (
    FileConfig,
    Schema,
    boolean,
    fixed,
    integer,
    number,
    optional,
)

_FIXED = {
    "activation_fn": "gelu-approximate",
    "timestep_activation_fn": "silu",
}
# Widths, lengths and counts beyond what any network has, and far from what hangs.
_WIDTH = integer(1, 65536)
_PATCH = integer(1, 64)
_LARGEST_TABLE = 2**28


def _width(config: "CogVideoXConfig") -> str | None:
    if config.dim <= 65536:
        return None
    return (
        "num_attention_heads x attention_head_dim: expected at most 65536, found "
        f"{config.dim}"
    )


def _area(config: "CogVideoXConfig") -> str | None:
    if min(config.sample_grid) >= 1:
        return None
    return (
        f"sample_height and sample_width: expected at least patch_size "
        f"{config.patch_size}, found {config.sample_height} and {config.sample_width}"
    )


def _positions(config: "CogVideoXConfig") -> str | None:
    rows, columns = config.sample_grid
    size = config.sample_latent_frames * rows * columns * config.dim
    if not config.use_learned_positional_embeddings or size <= _LARGEST_TABLE:
        return None
    return (
        "sample_frames, sample_height and sample_width: expected at most "
        f"{_LARGEST_TABLE:,} learned positions times width, found {size:,}"
    )


def _learned(config: "CogVideoXConfig") -> str | None:
    learned = config.use_learned_positional_embeddings
    if config.use_rotary_positional_embeddings or not learned:
        return None
    return (
        "use_learned_positional_embeddings: expected False without rotary embeddings "
        "(no such checkpoint exists), found True"
    )


_HEADS = ("num_attention_heads", "attention_head_dim")
_SAMPLE = ("sample_height", "sample_width", "patch_size")
_SCHEMA = Schema(
    "CogVideoX config",
    {
        "num_attention_heads": integer(1, 1024),
        "attention_head_dim": integer(16, 1024, multiple_of=16),
        "in_channels": integer(1, 4096),
        "out_channels": integer(1, 4096),
        "flip_sin_to_cos": boolean(),
        "freq_shift": integer(0, 1),
        "time_embed_dim": _WIDTH,
        "ofs_embed_dim": optional(integer(4, 65536, multiple_of=2)),
        "text_embed_dim": _WIDTH,
        "num_layers": integer(1, 1024),
        "attention_bias": boolean(),
        "sample_width": integer(1, 8192),
        "sample_height": integer(1, 8192),
        "sample_frames": integer(1, 8192),
        "patch_size": _PATCH,
        "patch_size_t": optional(_PATCH),
        "temporal_compression_ratio": _PATCH,
        "max_text_seq_length": _WIDTH,
        "norm_elementwise_affine": boolean(),
        "norm_eps": number(1e-12, 1),
        "spatial_interpolation_scale": number(0, 1000, above=True),
        "temporal_interpolation_scale": number(0, 1000, above=True),
        "use_rotary_positional_embeddings": boolean(),
        "use_learned_positional_embeddings": boolean(),
        "patch_bias": boolean(),
    },
    {name: fixed(value) for name, value in _FIXED.items()} | {"dropout": number(0, 1)},
    relations={
        _HEADS: _width,
        _SAMPLE: _area,
        (*_HEADS, *_SAMPLE, "sample_frames", "temporal_compression_ratio"): _positions,
        ("use_learned_positional_embeddings", "use_rotary_positional_embeddings"): (
            _learned
        ),
    },
)


@dataclass(frozen=True)
class CogVideoXConfig(FileConfig):
    """Names, meanings and defaults are those of diffusers 0.42.

    Attributes:
      patch_size_t: None for CogVideoX 1.0, 2 for 1.5.
      ofs_embed_dim: width of the `ofs` embedding, only in CogVideoX1.5 I2V.
      sample_height, sample_width: training size in latent pixels.
      sample_frames: training length in video frames (before temporal compression).
    """

    schema: ClassVar[Schema] = _SCHEMA
    constants: ClassVar[Mapping[str, Any]] = _FIXED

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
