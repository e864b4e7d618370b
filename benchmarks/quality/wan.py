"""The quality table on a small Wan: flow matching and six sites, cross-attention too.

    python -m benchmarks.quality.wan --captions 64 --out quality_wan.json

The same captions, noise, methods, searches and numbers as `benchmarks.quality`, on the
checkpoint in `benchmarks/data/wan_mini` (`python -m sixbit_jax.demo.train --model wan`
made it), with its own calibration; guidance 5. UniPC with flow sigmas, or with
`--euler` flow-match Euler of the same shift.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality import study as quality

CHECKPOINT = Path(__file__).parents[1] / "data" / "wan_mini"

# Those that answer whether the findings on DDIM and v-prediction carry over, the
# answers first: a run that is cut keeps them.
METHODS = (
    "w4a8",
    "w4a4",
    "dmpq",
    "dmpq_damage_final",
    "static",
    "static_per_mac",
    "static_damage",
    "w4a8_refined",
    "sixbit",
    "tdc",
    "tdc_together",
    "tdc_shared",
    "step_cache",
    "random",
    "alternate_steps",
    "alternate_blocks",
    "uniform_skips",
    "dmpq_tdc",
    "dmpq_tdc_rule_a",
    "dmpq_tdc_rule_b",
    "w4a16",
    "full_precision_float32",
    "sixbit_paper",
    "w4a4_refined",
    "schedule",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: the arguments of `benchmarks.quality`."""
    quality.main(
        arguments,
        module="benchmarks.quality.wan",
        model=str(CHECKPOINT),
        methods=list(METHODS),
        batch=64,
        minutes=4.5,
    )


if __name__ == "__main__":
    main()
