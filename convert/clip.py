"""CLIP's encoders: `CLIPTextModel`, `CLIPVisionModel(WithProjection)`.

Files of transformers before release 5 have a prefix before every name.
"""

from collections.abc import Collection

from convert.llama import skipped_layers
from convert.rules import Rule, RuleTable
from sixbit_jax.text_encoders.clip_config import CLIPVisionConfig

_LAYER = "encoder.layers.{layer}."


def _layer_rules(prefix: str) -> tuple[Rule, ...]:
    theirs = prefix + _LAYER
    return (
        Rule(
            theirs + "self_attn.{proj:q_proj|k_proj|v_proj|out_proj}.{leaf}",
            "layers.{layer}.self_attn.{proj}.{leaf}",
        ),
        Rule(
            theirs + "mlp.{proj:fc1|fc2}.{leaf}",
            "layers.{layer}.mlp.{proj}.{leaf}",
        ),
        Rule(
            theirs + "{norm:layer_norm1|layer_norm2}.{leaf}",
            "layers.{layer}.{norm}.{leaf}",
        ),
    )


def _prefix(name: str, keys: Collection[str]) -> str:
    return name if any(key.startswith(name) for key in keys) else ""


def text_table(keys: Collection[str]) -> RuleTable:
    """The rules for a text encoder with these keys."""
    prefix = _prefix("text_model.", keys)
    start = prefix.replace(".", r"\.")
    return RuleTable(
        model_class="CLIPTextModel",
        stacks=("layers",),
        rules=(
            Rule(
                prefix + "embeddings.{table:token_embedding|position_embedding}.{leaf}",
                "{table}.{leaf}",
            ),
            *_layer_rules(prefix),
            Rule(prefix + "final_layer_norm.{leaf}", "final_layer_norm.{leaf}"),
        ),
        ignored=(rf"{start}embeddings\.position_ids", r"text_projection\.weight"),
    )


def vision_table(config: CLIPVisionConfig, keys: Collection[str]) -> RuleTable:
    """The rules for a vision encoder with these keys.

    Args:
      config: says how many layers are run; keys of the others are ignored by name.
      keys: of the checkpoint, for the prefix of its names.
    """
    prefix = _prefix("vision_model.", keys)
    start = prefix.replace(".", r"\.")
    ignored = [
        rf"{start}embeddings\.position_ids",
        # What makes one vector of a picture; only rows of patches are read.
        rf"{start}post_layernorm\.(weight|bias)",
        r"visual_projection\.weight",
        # Beside Wan's picture encoder (`original_clip`).
        r"(textual\..*|log_scale|visual\.head)",
    ]
    skipped = range(config.num_run_layers, config.num_hidden_layers)
    if skipped:
        ignored.append(skipped_layers(rf"{start}encoder\.", skipped))
    return RuleTable(
        model_class="CLIPVisionModel",
        stacks=("layers",),
        rules=(
            Rule(prefix + "embeddings.class_embedding", "class_embedding"),
            Rule(
                prefix + "embeddings.{table:patch_embedding|position_embedding}.{leaf}",
                "{table}.{leaf}",
            ),
            Rule(prefix + "pre_layrnorm.{leaf}", "pre_layrnorm.{leaf}"),
            *_layer_rules(prefix),
        ),
        ignored=tuple(ignored),
    )
