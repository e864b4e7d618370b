"""Wan 2.1 and 2.2: `WanTransformer3DModel`.

Linears are `[out, in]` on both sides and the patch convolution stays as stored, so that
names are all that changes.
"""

from convert.rules import Rule, RuleTable

_BLOCK = "blocks.{layer}."
_EMBEDDER = "condition_embedder."

TABLE = RuleTable(
    model_class="WanTransformer3DModel",
    stacks=("blocks",),
    rules=(
        Rule("scale_shift_table", "scale_shift_table"),
        Rule("patch_embedding.{leaf}", "patch_embedding.{leaf}"),
        # The time embedder runs in float32 and stays in it.
        Rule(
            _EMBEDDER + "time_embedder.{linear:linear_1|linear_2}.{leaf}",
            _EMBEDDER + "time_embedder.{linear}.{leaf}",
        ),
        Rule(
            _EMBEDDER + "text_embedder.{linear:linear_1|linear_2}.{leaf}",
            _EMBEDDER + "text_embedder.{linear}.{leaf}",
        ),
        Rule(
            _EMBEDDER + "time_proj.{leaf}",
            _EMBEDDER + "time_proj.{leaf}",
        ),
        Rule(
            _EMBEDDER + "image_embedder.{norm:norm1|norm2}.{leaf}",
            _EMBEDDER + "image_embedder.{norm}.{leaf}",
        ),
        Rule(
            _EMBEDDER + "image_embedder.ff.net.0.proj.{leaf}",
            _EMBEDDER + "image_embedder.ff.up.{leaf}",
        ),
        Rule(
            _EMBEDDER + "image_embedder.ff.net.2.{leaf}",
            _EMBEDDER + "image_embedder.ff.down.{leaf}",
        ),
        Rule(
            _EMBEDDER + "image_embedder.pos_embed",
            _EMBEDDER + "image_embedder.pos_embed",
        ),
        Rule(_BLOCK + "scale_shift_table", _BLOCK + "scale_shift_table"),
        Rule(
            _BLOCK + "attn1.{proj:to_q|to_k|to_v}.{leaf}",
            _BLOCK + "attn1.{proj}.{leaf}",
        ),
        Rule(_BLOCK + "attn2.to_q.{leaf}", _BLOCK + "attn2.to_q.{leaf}"),
        # Keys and values of the prompt run once, on few rows: no site feeds them.
        Rule(
            _BLOCK + "attn2.{proj:to_k|to_v|add_k_proj|add_v_proj}.{leaf}",
            _BLOCK + "attn2.{proj}.{leaf}",
        ),
        Rule(
            _BLOCK + "{attn:attn1|attn2}.to_out.0.{leaf}",
            _BLOCK + "{attn}.to_out.{leaf}",
        ),
        Rule(
            _BLOCK + "{attn:attn1|attn2}.{norm:norm_q|norm_k|norm_added_k}.{leaf}",
            _BLOCK + "{attn}.{norm}.{leaf}",
        ),
        Rule(_BLOCK + "norm2.{leaf}", _BLOCK + "norm2.{leaf}"),
        Rule(_BLOCK + "ffn.net.0.proj.{leaf}", _BLOCK + "ffn.up.{leaf}"),
        Rule(_BLOCK + "ffn.net.2.{leaf}", _BLOCK + "ffn.down.{leaf}"),
        Rule("proj_out.{leaf}", "proj_out.{leaf}"),
    ),
    ignored=(
        # Published I2V files hold a norm that the network never uses.
        r"blocks\.\d+\.attn2\.norm_added_q\.weight",
        r"(.*\.)?(inv_freq|freqs_cos|freqs_sin)",
    ),
)
