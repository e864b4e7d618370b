"""CogVideoX's video autoencoder: `AutoencoderKLCogVideoX`.

Convolutions stay as stored, [out, in, (time,) height, width]; only names change.
"""

from convert.rules import Rule, RuleTable

_RESNETS = (
    r"{part:encoder|decoder}.{level:mid_block|down_blocks\.\d+|up_blocks\.\d+}."
    r"resnets.{layer}."
)
_CONVS = "{conv:conv_y|conv_b}"

TABLE = RuleTable(
    model_class="AutoencoderKLCogVideoX",
    stacks=(),
    rules=(
        Rule(
            "{part:encoder|decoder}.{conv:conv_in|conv_out}.conv.{leaf}",
            "{part}.{conv}.{leaf}",
        ),
        Rule("{part:encoder}.norm_out.{leaf}", "{part}.norm_out.{leaf}"),
        Rule(
            "{part:decoder}.norm_out.norm_layer.{leaf}",
            "{part}.norm_out.norm_layer.{leaf}",
        ),
        Rule(
            "{part:decoder}.norm_out." + _CONVS + ".conv.{leaf}",
            "{part}.norm_out.{conv}.{leaf}",
        ),
        Rule(
            _RESNETS + "{conv:conv1|conv2}.conv.{leaf}",
            "{part}.{level}.resnets.{layer}.{conv}.{leaf}",
        ),
        Rule(
            _RESNETS + "{norm:norm1|norm2}.{leaf}",
            "{part}.{level}.resnets.{layer}.{norm}.{leaf}",
        ),
        Rule(
            _RESNETS + "{norm:norm1|norm2}.norm_layer.{leaf}",
            "{part}.{level}.resnets.{layer}.{norm}.norm_layer.{leaf}",
        ),
        Rule(
            _RESNETS + "{norm:norm1|norm2}." + _CONVS + ".conv.{leaf}",
            "{part}.{level}.resnets.{layer}.{norm}.{conv}.{leaf}",
        ),
        Rule(
            _RESNETS + "conv_shortcut.{leaf}",
            "{part}.{level}.resnets.{layer}.conv_shortcut.{leaf}",
        ),
        Rule(
            "encoder.down_blocks.{layer}.downsamplers.0.conv.{leaf}",
            "encoder.down_blocks.{layer}.sampler.conv.{leaf}",
        ),
        Rule(
            "decoder.up_blocks.{layer}.upsamplers.0.conv.{leaf}",
            "decoder.up_blocks.{layer}.sampler.conv.{leaf}",
        ),
    ),
)
