"""Configuration of a Llama text stack, read from transformers' config.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sixbit_jax.text_encoders.config_fields import check_numbers, read_fields

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_FIXED = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "rope_scaling": (None, {"rope_type": "default"}, {"type": "default"}),
}
_IGNORED = {"max_position_embeddings", "pretraining_tp", "eos_token_id"}


@dataclass(frozen=True)
class LlamaConfig:
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

    def __post_init__(self):
        check_numbers(self, "Llama", positive=_SIZES, more=self._problems)

    def _problems(self) -> list[str]:
        problems = []
        heads, key_heads = self.num_attention_heads, self.key_value_heads
        if key_heads < 1 or heads % key_heads:
            problems.append(
                f"num_key_value_heads: expected a divisor of {heads}, found {key_heads}"
            )
        if self.head_dim is None and self.hidden_size % heads:
            problems.append(
                f"hidden_size: expected a multiple of {heads} heads, found "
                f"{self.hidden_size}"
            )
        elif self.width_of_head % 2:
            problems.append(
                f"head_dim: expected an even number, found {self.width_of_head}"
            )
        if not 0 <= self.num_hidden_layers_to_skip < self.num_hidden_layers:
            problems.append(
                "num_hidden_layers_to_skip: expected 0 to "
                f"{self.num_hidden_layers - 1}, found {self.num_hidden_layers_to_skip}"
            )
        return problems

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
    def from_dict(cls, values: Mapping[str, Any]) -> "LlamaConfig":
        """Reads the mapping of a transformers `config.json`.

        A LLaVA config (`LlavaForConditionalGeneration`) holds it as `text_config`.

        Raises:
          ValueError: for values that the port does not support and for unknown keys;
            lists all of them.
        """
        values = dict(values.get("text_config", values))
        rope = values.pop("rope_parameters", None) or {}
        if rope.get("rope_type", "default") != "default":
            values["rope_scaling"] = rope
        if "rope_theta" in rope:
            values["rope_theta"] = rope["rope_theta"]
        return cls(
            **read_fields(cls, values, title="Llama", ignored=_IGNORED, fixed=_FIXED)
        )

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `from_dict` reads."""
        return asdict(self)
