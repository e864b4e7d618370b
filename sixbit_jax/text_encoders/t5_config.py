"""Configuration of a T5 v1.1 or UMT5 encoder, read from transformers' config.json."""

from dataclasses import dataclass
from typing import ClassVar

from sixbit_jax.config_schema import FileConfig, Schema, integer, number
from sixbit_jax.text_encoders.config_fields import (
    BOOKKEEPING,
    COUNT,
    SIZE,
    anything,
    only,
)

_BUCKETS, _DISTANCE = (
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
)


def _distance(config: "T5Config") -> str | None:
    exact = config.relative_attention_num_buckets // 4
    found = config.relative_attention_max_distance
    if found > exact:
        return None
    return f"{_DISTANCE}: expected more than {exact}, found {found}"


# Without feed_forward_proj transformers builds the original T5; the published files
# have it.
_SCHEMA = Schema(
    "T5 config",
    {
        "vocab_size": integer(1, 2**24),
        "d_model": SIZE,
        "d_kv": SIZE,
        "d_ff": SIZE,
        "num_layers": COUNT,
        "num_heads": COUNT,
        _BUCKETS: integer(4, 4096, multiple_of=4),
        _DISTANCE: SIZE,
        "layer_norm_epsilon": number(0, 1),
    },
    {
        **BOOKKEEPING,
        **anything("num_decoder_layers", "scale_decoder_outputs", "output_past"),
        **anything("n_positions", "scalable_attention", "eos_token_id"),
        # The original T5's "relu" has one matrix less; no video model uses it.
        "feed_forward_proj": only("gated-gelu"),
        "dense_act_fn": only("gelu_new"),
        "is_gated_act": only(True),
    },
    relations={(_BUCKETS, _DISTANCE): _distance},
)


@dataclass(frozen=True)
class T5Config(FileConfig):
    """Names, meanings and defaults are transformers' (defaults of T5 v1.1-XXL).

    Attributes:
      vocab_size: rows of the embedding table.
      d_model: width of the residual stream, D.
      d_kv: channels of a head.
      d_ff: width of the feed-forward.
      relative_attention_num_buckets: rows of a table of position biases, even.
      relative_attention_max_distance: distances from here on share a bucket.
    """

    schema: ClassVar[Schema] = _SCHEMA

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    @property
    def embed_dim(self) -> int:
        """Width of the prompt embeddings."""
        return self.d_model
