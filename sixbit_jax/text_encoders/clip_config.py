"""Configurations of CLIP's encoders, read from transformers' config.json."""

from dataclasses import dataclass
from typing import ClassVar

from sixbit_jax.config_schema import Check, FileConfig, Schema, choice, integer, number
from sixbit_jax.text_encoders.config_fields import BOOKKEEPING, COUNT, SIZE, anything

_FIELDS: dict[str, Check] = {
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_hidden_layers": COUNT,
    "num_attention_heads": COUNT,
    "hidden_act": choice("quick_gelu", "gelu"),
    "layer_norm_eps": number(0, 1),
}
_OTHERS = BOOKKEEPING | anything("projection_dim")
_HEADS = ("hidden_size", "num_attention_heads")


def _heads(config: "CLIPTextConfig | CLIPVisionConfig") -> str | None:
    if config.hidden_size % config.num_attention_heads == 0:
        return None
    return (
        f"hidden_size: expected a multiple of {config.num_attention_heads} heads, "
        f"found {config.hidden_size}"
    )


def _patches(config: "CLIPVisionConfig") -> str | None:
    if config.image_size % config.patch_size == 0:
        return None
    return (
        f"image_size: expected a multiple of patch_size {config.patch_size}, found "
        f"{config.image_size}"
    )


def _skipped(config: "CLIPVisionConfig") -> str | None:
    last = config.num_hidden_layers - 1
    if config.num_hidden_layers_to_skip <= last:
        return None
    return (
        f"num_hidden_layers_to_skip: expected 0 to {last}, found "
        f"{config.num_hidden_layers_to_skip}"
    )


_TEXT = Schema(
    "CLIP text config",
    {
        **_FIELDS,
        "vocab_size": integer(1, 2**24),
        "max_position_embeddings": SIZE,
        "eos_token_id": integer(0, 2**24),
    },
    _OTHERS,
    relations={_HEADS: _heads},
)
_VISION = Schema(
    "CLIP vision config",
    {
        **_FIELDS,
        "num_channels": COUNT,
        "image_size": integer(1, 16384),
        "patch_size": integer(1, 1024),
        "num_hidden_layers_to_skip": integer(0, 1023),
    },
    _OTHERS,
    relations={
        _HEADS: _heads,
        ("image_size", "patch_size"): _patches,
        ("num_hidden_layers", "num_hidden_layers_to_skip"): _skipped,
    },
)


@dataclass(frozen=True)
class CLIPTextConfig(FileConfig):
    """Names and meanings are transformers'; defaults are those of CLIP-L.

    Attributes:
      max_position_embeddings: longest prompt.
      hidden_act: "quick_gelu" or "gelu".
      eos_token_id: the token whose row is the pooled embedding. 2 is an old mistake in
        published files, and stands for the largest id of a prompt.
    """

    schema: ClassVar[Schema] = _TEXT

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407

    @property
    def embed_dim(self) -> int:
        """Width of the pooled embedding."""
        return self.hidden_size

    @property
    def num_run_layers(self) -> int:
        """Layers that are run: all."""
        return self.num_hidden_layers


@dataclass(frozen=True)
class CLIPVisionConfig(FileConfig):
    """Names and meanings are transformers'; defaults are those of Wan 2.1's ViT-H/14.

    Attributes:
      image_size: height and width of the picture.
      patch_size: height and width of a patch.
      hidden_act: "quick_gelu" or "gelu".
      num_hidden_layers_to_skip: layers at the end that are not run, not stored and not
        loaded (a field of ours): Wan reads the hidden state before the last layer.
    """

    schema: ClassVar[Schema] = _VISION

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
