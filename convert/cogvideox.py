"""CogVideoX 2b, 5b and 1.5: `CogVideoXTransformer3DModel`.

Linears are `[out, in]` on both sides and the patch embedding stays as stored, so that
names are all that changes.
"""

from convert.rules import Rule, RuleTable

_BLOCK = "transformer_blocks.{layer}."

TABLE = RuleTable(
    model_class="CogVideoXTransformer3DModel",
    stacks=("transformer_blocks",),
    rules=(
        Rule("patch_embed.proj.{leaf}", "patch_embed.proj.{leaf}"),
        Rule(
            "patch_embed.text_proj.{leaf}",
            "patch_embed.text_proj.{leaf}",
        ),
        Rule("patch_embed.pos_embedding", "patch_embed.pos_embedding"),
        Rule(
            "{module:time_embedding|ofs_embedding}.{linear:linear_1|linear_2}.{leaf}",
            "{module}.{linear}.{leaf}",
        ),
        Rule(
            _BLOCK + "{norm:norm1|norm2}.linear.{leaf}",
            _BLOCK + "{norm}.linear.{leaf}",
        ),
        Rule(
            _BLOCK + "{norm:norm1|norm2}.norm.{leaf}",
            _BLOCK + "{norm}.norm.{leaf}",
        ),
        Rule(
            _BLOCK + "attn1.{proj:to_q|to_k|to_v}.{leaf}",
            _BLOCK + "attn1.{proj}.{leaf}",
        ),
        Rule(
            _BLOCK + "attn1.to_out.0.{leaf}",
            _BLOCK + "attn1.to_out.{leaf}",
        ),
        Rule(
            _BLOCK + "attn1.{norm:norm_q|norm_k}.{leaf}",
            _BLOCK + "attn1.{norm}.{leaf}",
        ),
        Rule(_BLOCK + "ff.net.0.proj.{leaf}", _BLOCK + "ff.up.{leaf}"),
        Rule(_BLOCK + "ff.net.2.{leaf}", _BLOCK + "ff.down.{leaf}"),
        Rule("norm_final.{leaf}", "norm_final.{leaf}"),
        Rule("norm_out.linear.{leaf}", "norm_out.linear.{leaf}"),
        Rule("norm_out.norm.{leaf}", "norm_out.norm.{leaf}"),
        Rule("proj_out.{leaf}", "proj_out.{leaf}"),
    ),
    ignored=(
        # Fixed sine tables that some exports save although they are computed.
        r"patch_embed\.pos_embedding",
        r"(.*\.)?(inv_freq|freqs_cos|freqs_sin)",
    ),
)
