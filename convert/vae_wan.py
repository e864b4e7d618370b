"""The video autoencoder of Wan 2.1 and 2.2: `AutoencoderKLWan`.

Convolutions keep PyTorch's layout; scales of norms lose the axes of size one that they
are broadcast over.
"""

from convert.rules import Rule, RuleTable, Transform


def _scale(axes: int) -> Transform:
    """A scale per channel, stored with `axes` axes of size one behind it."""
    return Transform(
        lambda x: x.reshape(-1),
        lambda x: x.reshape(-1, *[1] * axes),
        lambda shape: (*shape, *[1] * axes),
    )


_VIDEO, _PICTURE = _scale(3), _scale(2)
# Anything in front: the two versions of the network nest their blocks differently.
_ANY = "{module:.+}."

TABLE = RuleTable(
    model_class="AutoencoderKLWan",
    stacks=(),
    rules=(
        Rule("{conv:quant_conv|post_quant_conv}.{leaf}", "{conv}.{leaf}"),
        Rule(
            "{half:encoder|decoder}.{conv:conv_in|conv_out}.{leaf}",
            "{half}.{conv}.{leaf}",
        ),
        Rule(
            "{half:encoder|decoder}.norm_out.gamma",
            "{half}.norm_out.gamma",
            transform=_VIDEO,
        ),
        Rule(
            _ANY + "{norm:norm1|norm2}.gamma",
            "{module}.{norm}.gamma",
            transform=_VIDEO,
        ),
        Rule(
            _ANY + "{conv:conv1|conv2|conv_shortcut|time_conv}.{leaf}",
            "{module}.{conv}.{leaf}",
        ),
        Rule(
            "{module:.+[.]attentions[.]0}.norm.gamma",
            "{module}.norm.gamma",
            transform=_PICTURE,
        ),
        Rule(
            "{module:.+[.]attentions[.]0}.{linear:to_qkv|proj}.{leaf}",
            "{module}.{linear}.{leaf}",
        ),
        # Before the convolution stands the module that pads or repeats pixels.
        Rule(_ANY + "resample.1.{leaf}", "{module}.resample.{leaf}"),
    ),
)
