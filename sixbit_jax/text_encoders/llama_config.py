"""Configuration of a Llama text stack, read from transformers' config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sixbit_jax.config_schema import FileConfig, Schema, integer, number, optional
from sixbit_jax.text_encoders.config_fields import (
    BOOKKEEPING,
    COUNT,
    SIZE,
    anything,
    only,
)


def _key_heads(config: "LlamaConfig") -> str | None:
    heads, key_heads = config.num_attention_heads, config.key_value_heads
    if heads % key_heads == 0:
        return None
    return f"num_key_value_heads: expected a divisor of {heads}, found {key_heads}"


def _width_of_head(config: "LlamaConfig") -> str | None:
    heads, width = config.num_attention_heads, config.hidden_size
    if config.head_dim is None and width % heads:
        return f"hidden_size: expected a multiple of {heads} heads, found {width}"
    if config.width_of_head % 2:
        return f"head_dim: expected an even number, found {config.width_of_head}"
    return None


def _skipped(config: "LlamaConfig") -> str | None:
    last = config.num_hidden_layers - 1
    if config.num_hidden_layers_to_skip <= last:
        return None
    return (
        f"num_hidden_layers_to_skip: expected 0 to {last}, found "
        f"{config.num_hidden_layers_to_skip}"
    )


_SCHEMA = Schema(
    "Llama config",
    {
        "vocab_size": integer(1, 2**24),
        "hidden_size": SIZE,
        "intermediate_size": SIZE,
        "num_hidden_layers": COUNT,
        "num_attention_heads": COUNT,
        "num_key_value_heads": optional(COUNT),
        "head_dim": optional(SIZE),
        "rms_norm_eps": number(0, 1),
        "rope_theta": number(1, 1e12),
        "num_hidden_layers_to_skip": integer(0, 1023),
    },
    {
        **BOOKKEEPING,
        **anything("max_position_embeddings", "pretraining_tp", "eos_token_id"),
        "hidden_act": only("silu"),
        "attention_bias": only(False),
        "mlp_bias": only(False),
        "rope_scaling": only(None, {"rope_type": "default"}, {"type": "default"}),
    },
    relations={
        ("num_attention_heads", "num_key_value_heads"): _key_heads,
        ("hidden_size", "num_attention_heads", "head_dim"): _width_of_head,
        ("num_hidden_layers", "num_hidden_layers_to_skip"): _skipped,
    },
)


@dataclass(frozen=True)
class LlamaConfig(FileConfig):
    """Names, meanings and defaults are transformers', with one field of ours.

    Attributes:
      num_hidden_layers: layers of the published model.
      num_key_value_heads: None is one per head.
      head_dim: None is `hidden_size / num_attention_heads`.
      rope_theta: base of the rotary frequencies.
      num_hidden_layers_to_skip: layers at the end that are not run, not stored and not
        loaded, together with the final norm: HunyuanVideo reads the hidden state
        before the last two layers. With 0 the final norm is applied.
    """

    schema: ClassVar[Schema] = _SCHEMA

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    num_hidden_layers_to_skip: int = 2

    @property
    def key_value_heads(self) -> int:
        """Number of key and value heads."""
        given = self.num_key_value_heads
        return self.num_attention_heads if given is None else given

    @property
    def width_of_head(self) -> int:
        """Channels of a head."""
        given = self.head_dim
        return self.hidden_size // self.num_attention_heads if given is None else given

    @property
    def num_run_layers(self) -> int:
        """Layers that are run."""
        return self.num_hidden_layers - self.num_hidden_layers_to_skip

    @property
    def embed_dim(self) -> int:
        """Width of the prompt embeddings."""
        return self.hidden_size

    @classmethod
    def file_values(cls, values: Any) -> Any:
        """LLaVA's file (`LlavaForConditionalGeneration`) has them as `text_config`."""
        if not isinstance(values, Mapping):
            return values
        inner = values.get("text_config", values)
        return _with_old_names(inner) if isinstance(inner, Mapping) else inner


def _with_old_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 has one mapping for what were two keys."""
    found = dict(values)
    rope = found.pop("rope_parameters", None)
    if not isinstance(rope, Mapping):
        return found if rope is None else found | {"rope_parameters": rope}
    if rope.get("rope_type", "default") != "default":
        found["rope_scaling"] = dict(rope)
    if "rope_theta" in rope:
        found["rope_theta"] = rope["rope_theta"]
    return found
