"""Configurations of CLIP's encoders, read from transformers' config.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sixbit_jax.text_encoders.config_fields import check_numbers, read_fields

ACTIVATIONS = ("quick_gelu", "gelu")
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


def _problems(config: "CLIPTextConfig | CLIPVisionConfig") -> list[str]:
    problems = []
    if config.hidden_size % config.num_attention_heads:
        problems.append(
            f"hidden_size: expected a multiple of {config.num_attention_heads} heads, "
            f"found {config.hidden_size}"
        )
    if config.hidden_act not in ACTIVATIONS:
        wanted = " or ".join(map(repr, ACTIVATIONS))
        problems.append(f"hidden_act: expected {wanted}, found {config.hidden_act!r}")
    return problems


@dataclass(frozen=True)
class CLIPTextConfig:
    """Names and meanings are transformers'; defaults are those of CLIP-L.

    Attributes:
      max_position_embeddings: longest prompt.
      hidden_act: "quick_gelu" or "gelu".
      eos_token_id: the token whose row is the pooled embedding. 2 is an old mistake in
        published files, and stands for the largest id of a prompt.
    """

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407

    def __post_init__(self):
        sizes = (*_SIZES, "vocab_size", "max_position_embeddings")
        check_numbers(self, "CLIP text", positive=sizes, more=lambda: _problems(self))

    @property
    def embed_dim(self) -> int:
        """Width of the pooled embedding."""
        return self.hidden_size

    @property
    def num_run_layers(self) -> int:
        """Layers that are run: all."""
        return self.num_hidden_layers

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CLIPTextConfig":
        """Reads the mapping of a transformers `config.json`.

        Raises:
          ValueError: for unsupported values and unknown keys; lists all of them.
        """
        ignored = {"projection_dim"}
        return cls(**read_fields(cls, values, title="CLIP text", ignored=ignored))

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `from_dict` reads."""
        return asdict(self)


@dataclass(frozen=True)
class CLIPVisionConfig:
    """Names and meanings are transformers'; defaults are those of Wan 2.1's ViT-H/14.

    Attributes:
      image_size: height and width of the picture.
      patch_size: height and width of a patch.
      hidden_act: "quick_gelu" or "gelu".
      num_hidden_layers_to_skip: layers at the end that are not run, not stored and not
        loaded (a field of ours): Wan reads the hidden state before the last layer.
    """

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    num_hidden_layers_to_skip: int = 1

    def __post_init__(self):
        sizes = (*_SIZES, "num_channels", "image_size", "patch_size")

        def more() -> list[str]:
            problems = _problems(self)
            if self.image_size % self.patch_size:
                problems.append(
                    f"image_size: expected a multiple of patch_size "
                    f"{self.patch_size}, found {self.image_size}"
                )
            if not 0 <= self.num_hidden_layers_to_skip < self.num_hidden_layers:
                problems.append(
                    "num_hidden_layers_to_skip: expected 0 to "
                    f"{self.num_hidden_layers - 1}, found "
                    f"{self.num_hidden_layers_to_skip}"
                )
            return problems

        check_numbers(self, "CLIP vision", positive=sizes, more=more)

    @property
    def num_run_layers(self) -> int:
        """Layers that are run."""
        return self.num_hidden_layers - self.num_hidden_layers_to_skip

    @property
    def num_tokens(self) -> int:
        """Rows of the output: the class token and one per patch."""
        return 1 + (self.image_size // self.patch_size) ** 2

    @property
    def embed_dim(self) -> int:
        """Width of the output."""
        return self.hidden_size

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CLIPVisionConfig":
        """Reads the mapping of a transformers `config.json`.

        Raises:
          ValueError: for unsupported values and unknown keys; lists all of them.
        """
        ignored = {"projection_dim", "dropout"}
        return cls(**read_fields(cls, values, title="CLIP vision", ignored=ignored))

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `from_dict` reads."""
        return asdict(self)
