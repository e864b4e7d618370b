"""Llama text stacks: `LlamaModel`, and the one inside `LlavaForConditionalGeneration`.

Names are transformers'; only the prefix differs between files, and the layers that are
not run are left out by name.
"""

from collections.abc import Collection, Iterable

from convert.rules import Rule, RuleTable
from sixbit_jax.text_encoders.llama_config import LlamaConfig

# LlamaModel; LlamaForCausalLM; LLaVA before and since transformers 4.52.
_PREFIXES = ("", "model.", "language_model.model.", "model.language_model.")


def table(config: LlamaConfig, keys: Collection[str]) -> RuleTable:
    """The rules for a checkpoint with these keys.

    Args:
      config: says how many layers are run; keys of the others are ignored by name.
      keys: the keys of the checkpoint, for the prefix of its names.
    """
    found = (p for p in _PREFIXES if f"{p}embed_tokens.weight" in keys)
    prefix = next(found, "")
    layer = prefix + "layers.{layer}."
    return RuleTable(
        model_class="LlamaModel",
        stacks=("layers",),
        rules=(
            Rule(prefix + "embed_tokens.{leaf}", "embed_tokens.{leaf}"),
            Rule(
                layer + "self_attn.{proj:q_proj|k_proj|v_proj|o_proj}.{leaf}",
                "layers.{layer}.self_attn.{proj}.{leaf}",
            ),
            Rule(
                layer + "mlp.{proj:gate_proj|up_proj|down_proj}.{leaf}",
                "layers.{layer}.mlp.{proj}.{leaf}",
            ),
            Rule(
                layer + "{norm:input_layernorm|post_attention_layernorm}.{leaf}",
                "layers.{layer}.{norm}.{leaf}",
            ),
            Rule(prefix + "norm.{leaf}", "norm.{leaf}"),
        ),
        ignored=_unused(prefix, config),
    )


def _unused(prefix: str, config: LlamaConfig) -> tuple[str, ...]:
    start = prefix.replace(".", r"\.")
    patterns = [
        rf"{start}layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
        # The head of a language model, and LLaVA's eyes.
        r"(language_model\.)?lm_head\.weight",
        r"(model\.)?(vision_tower|multi_modal_projector)\..*",
    ]
    skipped = range(config.num_run_layers, config.num_hidden_layers)
    if skipped:
        patterns += [rf"{start}norm\.weight", skipped_layers(start, skipped)]
    return tuple(patterns)


def skipped_layers(prefix: str, layers: Iterable[int]) -> str:
    """The pattern of everything in these layers.

    Args:
      prefix: pattern of what stands before `layers.`.
      layers: their numbers.
    """
    return rf"{prefix}layers\.({'|'.join(map(str, layers))})\..*"
