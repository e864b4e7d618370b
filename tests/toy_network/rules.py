"""How checkpoints of the toy network map to ours."""

from convert.rules import Rule, RuleTable

TABLE = RuleTable(
    model_class="ToyTransformer3DModel",
    stacks=("mixing_blocks", "closing_blocks"),
    rules=(
        Rule(
            "{linear:proj_in|text_proj|proj_out}.{leaf}",
            "{linear}.{leaf}",
        ),
        Rule(
            "mixing.{layer}.net.0.{leaf}",
            "mixing_blocks.{layer}.up.{leaf}",
        ),
        Rule(
            "mixing.{layer}.net.2.{leaf}",
            "mixing_blocks.{layer}.down.{leaf}",
        ),
        Rule("closing.{layer}.{leaf}", "closing_blocks.{layer}.linear.{leaf}"),
    ),
)
