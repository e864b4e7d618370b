"""Configuration of a T5 v1.1 or UMT5 encoder, read from transformers' config.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sixbit_jax.text_encoders.config_fields import check_numbers, read_fields

_SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
_FIXED = {
    # The original T5's "relu" has one matrix less; no video model uses it.
    "feed_forward_proj": ("gated-gelu",),
    "dense_act_fn": ("gelu_new",),
    "is_gated_act": (True,),
}
_IGNORED = {
    "num_decoder_layers",
    "scale_decoder_outputs",
    "output_past",
    "n_positions",
    "scalable_attention",
    "eos_token_id",
}


@dataclass(frozen=True)
class T5Config:
    """Names, meanings and defaults are transformers' (defaults of T5 v1.1-XXL).

    Attributes:
      vocab_size: rows of the embedding table.
      d_model: width of the residual stream, D.
      d_kv: channels of a head.
      d_ff: width of the feed-forward.
      relative_attention_num_buckets: rows of a table of position biases, even.
      relative_attention_max_distance: distances from here on share a bucket.
    """

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    def __post_init__(self):
        buckets = "relative_attention_num_buckets"
        distance = "relative_attention_max_distance"

        def more() -> list[str]:
            problems = []
            count = self.relative_attention_num_buckets
            if count < 4 or count % 4:
                problems.append(f"{buckets}: expected a multiple of 4, found {count}")
            elif self.relative_attention_max_distance <= count // 4:
                problems.append(
                    f"{distance}: expected more than {count // 4}, found "
                    f"{self.relative_attention_max_distance}"
                )
            return problems

        check_numbers(self, "T5", positive=(*_SIZES, buckets, distance), more=more)

    @property
    def embed_dim(self) -> int:
        """Width of the prompt embeddings."""
        return self.d_model

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "T5Config":
        """Reads the mapping of a transformers `config.json`.

        Raises:
          ValueError: for values that the port does not support and for unknown keys;
            lists all of them.
        """
        # Without the key transformers builds the original T5's feed-forward; T5 files
        # always have it.
        return cls(
            **read_fields(cls, values, title="T5", ignored=_IGNORED, fixed=_FIXED)
        )

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `from_dict` reads."""
        return asdict(self)
