"""T5 v1.1 and UMT5 encoders: `T5EncoderModel`, `UMT5EncoderModel`.

Linears are `[out, in]` on both sides; names are all that changes.
"""

from convert.rules import Rule, RuleTable

_THEIRS = "encoder.block.{layer}.layer."
_OURS = "blocks.{layer}."
_BIAS = "layer.0.SelfAttention.relative_attention_bias.{leaf}"

_RULES = (
    Rule("shared.{leaf}", "shared.{leaf}"),
    Rule(
        _THEIRS + "0.SelfAttention.{proj:q|k|v|o}.{leaf}",
        _OURS + "attention.{proj}.{leaf}",
    ),
    Rule(_THEIRS + "0.layer_norm.{leaf}", _OURS + "attention_norm.{leaf}"),
    Rule(
        _THEIRS + "1.DenseReluDense.{proj:wi_0|wi_1|wo}.{leaf}",
        _OURS + "ff.{proj}.{leaf}",
    ),
    Rule(_THEIRS + "1.layer_norm.{leaf}", _OURS + "ff_norm.{leaf}"),
    Rule("encoder.final_layer_norm.{leaf}", "final_layer_norm.{leaf}"),
)
# The embedding table once more, under the name of the encoder; the tokenizer that
# ComfyUI's files carry.
_IGNORED = (r"encoder\.embed_tokens\.weight", r"spiece_model")

T5_TABLE = RuleTable(
    model_class="T5EncoderModel",
    stacks=("blocks",),
    rules=(
        *_RULES,
        Rule("encoder.block.0." + _BIAS, "relative_attention_bias.{leaf}"),
    ),
    ignored=_IGNORED,
)
UMT5_TABLE = RuleTable(
    model_class="UMT5EncoderModel",
    stacks=("blocks",),
    rules=(
        *_RULES,
        Rule(
            "encoder.block.{layer}." + _BIAS, _OURS + "relative_attention_bias.{leaf}"
        ),
    ),
    ignored=_IGNORED,
)
