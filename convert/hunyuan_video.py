"""HunyuanVideo: `HunyuanVideoTransformer3DModel`.

Linears are `[out, in]` on both sides and the patch convolution stays as stored, so that
names are all that changes.
"""

from convert.rules import Rule, RuleTable

_DUAL, _SINGLE = "transformer_blocks.{layer}.", "single_transformer_blocks.{layer}."
_REFINER = "context_embedder."
_REFINER_BLOCK = _REFINER + "token_refiner.refiner_blocks.{layer}."
_EMBEDDER = "time_text_embed."

TABLE = RuleTable(
    model_class="HunyuanVideoTransformer3DModel",
    stacks=("transformer_blocks", "single_transformer_blocks"),
    rules=(
        Rule("x_embedder.proj.{leaf}", "x_embedder.proj.{leaf}"),
        Rule(
            _EMBEDDER
            + "{part:timestep_embedder|guidance_embedder|text_embedder}."
            + "{linear:linear_1|linear_2}.{leaf}",
            _EMBEDDER + "{part}.{linear}.{leaf}",
        ),
        Rule(
            _REFINER
            + "time_text_embed.{part:timestep_embedder|text_embedder}."
            + "{linear:linear_1|linear_2}.{leaf}",
            _REFINER + "time_text_embed.{part}.{linear}.{leaf}",
        ),
        Rule(_REFINER + "proj_in.{leaf}", _REFINER + "proj_in.{leaf}"),
        Rule(
            _REFINER_BLOCK + "{norm:norm1|norm2}.{leaf}",
            _REFINER_BLOCK + "{norm}.{leaf}",
        ),
        Rule(
            _REFINER_BLOCK + "attn.{proj:to_q|to_k|to_v}.{leaf}",
            _REFINER_BLOCK + "attn.{proj}.{leaf}",
        ),
        Rule(
            _REFINER_BLOCK + "attn.to_out.0.{leaf}",
            _REFINER_BLOCK + "attn.to_out.{leaf}",
        ),
        Rule(_REFINER_BLOCK + "ff.net.0.proj.{leaf}", _REFINER_BLOCK + "ff.up.{leaf}"),
        Rule(_REFINER_BLOCK + "ff.net.2.{leaf}", _REFINER_BLOCK + "ff.down.{leaf}"),
        Rule(
            _REFINER_BLOCK + "norm_out.linear.{leaf}",
            _REFINER_BLOCK + "norm_out.linear.{leaf}",
        ),
        Rule(
            _DUAL + "{norm:norm1|norm1_context}.linear.{leaf}",
            _DUAL + "{norm}.linear.{leaf}",
        ),
        Rule(
            _DUAL
            + "attn.{proj:to_q|to_k|to_v|add_q_proj|add_k_proj|add_v_proj|to_add_out}"
            + ".{leaf}",
            _DUAL + "attn.{proj}.{leaf}",
        ),
        Rule(_DUAL + "attn.to_out.0.{leaf}", _DUAL + "attn.to_out.{leaf}"),
        Rule(
            _DUAL + "attn.{norm:norm_q|norm_k|norm_added_q|norm_added_k}.{leaf}",
            _DUAL + "attn.{norm}.{leaf}",
        ),
        Rule(_DUAL + "{ff:ff|ff_context}.net.0.proj.{leaf}", _DUAL + "{ff}.up.{leaf}"),
        Rule(_DUAL + "{ff:ff|ff_context}.net.2.{leaf}", _DUAL + "{ff}.down.{leaf}"),
        Rule(_SINGLE + "norm.linear.{leaf}", _SINGLE + "norm.linear.{leaf}"),
        Rule(
            _SINGLE + "attn.{proj:to_q|to_k|to_v}.{leaf}",
            _SINGLE + "attn.{proj}.{leaf}",
        ),
        Rule(
            _SINGLE + "attn.{norm:norm_q|norm_k}.{leaf}",
            _SINGLE + "attn.{norm}.{leaf}",
        ),
        Rule(_SINGLE + "{proj:proj_mlp|proj_out}.{leaf}", _SINGLE + "{proj}.{leaf}"),
        Rule("norm_out.linear.{leaf}", "norm_out.linear.{leaf}"),
        Rule("proj_out.{leaf}", "proj_out.{leaf}"),
    ),
)
