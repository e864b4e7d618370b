"""Q-VDiT on the bundled model: the paper's ablation, tuned and sampled.

    python -m benchmarks.quality.q_vdit --out q_vdit.json --minutes 8

Records trajectories of the full-precision model, searches learning rates on held-out
ones, tunes every variant for every weight width and scope with one compiled program,
and samples the evaluation captions with quantized weights and activations. The file is
written after every row; `--resume` continues one that was cut, `--only` runs a part.
"""

from collections.abc import Sequence
from typing import Any

import jax

from benchmarks.quality.q_vdit_rows import (
    CONFIGURATIONS,
    GROUPS,
    VARIANTS,
    Settings,
    names_of,
)
from benchmarks.quality.q_vdit_runs import Workbench
from benchmarks.quality.runner import (
    Clock,
    StudyCommand,
    comparisons,
    plain,
    resumed,
    tuned_markdown,
    with_comparisons,
)
from benchmarks.quality.study import load_model

COMPARISONS = (
    ("range", "rtn"),
    ("steps", "range"),
    ("tqe_no_m", "steps"),
    ("tqe", "tqe_no_m"),
    ("tqe", "steps"),
    ("tmd", "steps"),
    ("all", "tqe"),
    ("all", "tmd"),
    ("all", "range"),
    ("all_tmd10", "tqe"),
    ("all_inner", "all"),
)
"""(variant, variant): paired differences in PSNR within each configuration."""


def run(
    model: Any,
    settings: Settings,
    *,
    only: Sequence[str] = (),
    done: Sequence[dict[str, Any]] = (),
    minutes: float | None = None,
    after_row: Any = None,
) -> list[dict[str, Any]]:
    """Tunes and measures; see the module.

    Args:
      model: the network in full precision.
      settings: sizes and numbers of the run.
      only: parts of row names such as "w3a6", "attention", "tqe"; a row runs if for
        every kind of part that is given one of it is in its name.
      done: records of an earlier run: its rows are kept, its learning rates used.
      minutes: nothing is started after this time.
      after_row: called with all records after every row.

    Returns:
      The records.

    Raises:
      ValueError: `only` names nothing, or `done` is of other settings.
    """
    wanted = names_of(only)
    made, earlier = resumed(settings, done)
    finished = {r["method"] for r in made if r["kind"] == "quality"}
    clock = Clock(minutes)
    bench = Workbench(model, settings, clock)
    rates = earlier["learning_rates"] if earlier else None
    rates, swept = bench.learning_rates(rates)
    if not earlier:
        made.append(
            {
                "kind": "settings",
                "settings": plain(settings),
                "learning_rates": rates,
                "devices": len(jax.devices()),
            }
        )
        made += swept
    for bits, scope in dict.fromkeys((c.weight_bits, s) for c, s, _ in wanted):
        here = [w for w in wanted if (w[0].weight_bits, w[1]) == (bits, scope)]
        for variant in dict.fromkeys(v for _, _, v in here):
            rows = [(c, s, v) for c, s, v in here if v == variant]
            rows = [r for r in rows if bench.row_name(*r) not in finished]
            if not rows:
                continue
            if clock.over():
                clock.log(f"time is over: w{bits} {scope} {variant} is left out")
                break
            tuned, record = bench.tune(bits, scope, variant)
            for row in rows:
                made.append(bench.evaluate(tuned, record, *row))
                if after_row is not None:
                    after_row(with_comparisons(made, compared(bench), done))
    return with_comparisons(made, compared(bench), done)


def compared(bench: Workbench) -> list[dict[str, Any]]:
    """Paired differences between the variants measured in this run."""
    groups = dict.fromkeys(tuple(name.split("/")[:2]) for name in bench.measured)
    pairs = [
        [f"{configuration}/{scope}/{variant}" for variant in pair]
        for configuration, scope in groups
        for pair in COMPARISONS
    ]
    return comparisons(bench.measured, pairs, len(bench.task))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    command = StudyCommand("benchmarks.quality.q_vdit", __doc__, ("optax",))
    found = command.run_tuned(
        arguments,
        run,
        Settings(),
        load=load_model,
        only=f"parts of row names: {', '.join(CONFIGURATIONS)}, all_linears, "
        f"attention, {', '.join(VARIANTS)}",
        rates={
            "nargs": len(GROUPS),
            "metavar": tuple(GROUPS),
            "help": "learning rates; default: searched",
        },
    )
    print(tuned_markdown(found))


if __name__ == "__main__":
    main()
