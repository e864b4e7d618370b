"""HunyuanVideo's video autoencoder: `AutoencoderKLHunyuanVideo`.

Convolutions stay as stored, [out, in, time, height, width]; only names change.
"""

from convert.rules import Rule, RuleTable

_RESNETS = (
    r"{part:encoder|decoder}.{level:mid_block|down_blocks\.\d+|up_blocks\.\d+}."
    r"resnets.{layer}."
)
_OURS = "{part}.{level}.resnets.{layer}."
_ATTENTION = "{part:encoder|decoder}.mid_block.attentions.0."

TABLE = RuleTable(
    model_class="AutoencoderKLHunyuanVideo",
    stacks=(),
    rules=(
        Rule("{conv:quant_conv|post_quant_conv}.{leaf}", "{conv}.{leaf}"),
        Rule(
            "{part:encoder|decoder}.{conv:conv_in|conv_out}.conv.{leaf}",
            "{part}.{conv}.{leaf}",
        ),
        Rule(
            "{part:encoder|decoder}.conv_norm_out.{leaf}",
            "{part}.conv_norm_out.{leaf}",
        ),
        Rule(
            _RESNETS + "{conv:conv1|conv2|conv_shortcut}.conv.{leaf}",
            _OURS + "{conv}.{leaf}",
        ),
        Rule(_RESNETS + "{norm:norm1|norm2}.{leaf}", _OURS + "{norm}.{leaf}"),
        Rule(
            _ATTENTION + "{linear:to_q|to_k|to_v|group_norm}.{leaf}",
            "{part}.mid_block.attention.{linear}.{leaf}",
        ),
        Rule(
            _ATTENTION + "to_out.0.{leaf}",
            "{part}.mid_block.attention.to_out.{leaf}",
        ),
        Rule(
            "encoder.down_blocks.{layer}.downsamplers.0.conv.conv.{leaf}",
            "encoder.down_blocks.{layer}.sampler.{leaf}",
        ),
        Rule(
            "decoder.up_blocks.{layer}.upsamplers.0.conv.conv.{leaf}",
            "decoder.up_blocks.{layer}.sampler.conv.{leaf}",
        ),
    ),
)
