"""MPQ-DMv2 on the bundled model: W2A6, W3A6 and W4A8, ablation, rotation, sweeps.

    python -m benchmarks.quality.mpq_dm --out mpq_dm.json --minutes 7

Records trajectories of the full-precision model, searches learning rates and numbers
of MTRD at 3 bits on held-out ones, measures the errors of weights and outputs, tunes
the variants with one compiled program (two with rotation), and samples the evaluation
captions with quantized weights and activations. The file is written after every row;
`--resume` continues one that was cut, `--only` runs a part.
"""

from collections.abc import Sequence
from typing import Any

import jax

from benchmarks.quality.mpq_dm_rows import (
    COMPARISONS,
    CONFIGURATIONS,
    VARIANTS,
    Settings,
    names_of,
)
from benchmarks.quality.mpq_dm_runs import Bench
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
      only: names of configurations and variants; none of a kind means all.
      done: records of an earlier run: its rows are kept, its numbers used.
      minutes: nothing is started after this time.
      after_row: called with all records after every row.

    Returns:
      The records.

    Raises:
      ValueError: `only` names nothing, or `done` is of other settings.
    """
    wanted = names_of(only)
    made, earlier = resumed(settings, done)
    clock = Clock(minutes)
    bench = Bench(model, settings, clock)
    if earlier:
        bench.numbers |= earlier["numbers"]
    else:
        swept = bench.search() if any(VARIANTS[v].tuned for _, v in wanted) else []
        made.append(
            {
                "kind": "settings",
                "settings": plain(settings),
                "numbers": dict(bench.numbers),
                "devices": len(jax.devices()),
            }
        )
        made += swept
    finished = {(r["kind"], r["method"], r.get("bits")) for r in made if "method" in r}

    def add(record: dict[str, Any]) -> None:
        made.append(record)
        if after_row is not None:
            after_row(with_comparisons(made, compared(bench), done))

    for configuration, variant in clock.until_over(wanted, "/".join):
        bits = CONFIGURATIONS[configuration].weight_bits
        untuned = not VARIANTS[variant].tuned
        if untuned and ("error", variant, bits) not in finished:
            add(bench.errors(bits, variant))
        if ("quality", f"{configuration}/{variant}", None) not in finished:
            add(bench.row(configuration, variant))
    return with_comparisons(made, compared(bench), done)


def compared(bench: Bench) -> list[dict[str, Any]]:
    """Paired differences between the rows measured in this run."""
    pairs = [
        [f"{configuration}/{variant}" for variant in pair]
        for configuration in CONFIGURATIONS
        for pair in COMPARISONS
    ]
    return comparisons(bench.measured, pairs, len(bench.task))


def error_table(content: Sequence[dict[str, Any]]) -> str:
    """The table of weight and output errors."""
    lines = [
        "| quantizer | bits | weight error | output error | salient |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['method']} | {row['bits']} | {row['weight_error']:.5f} | "
        f"{row['output_error']:.5f} | {row['mean_salient_share']:.2f} |"
        for row in content
        if row["kind"] == "error"
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    command = StudyCommand("benchmarks.quality.mpq_dm", __doc__, ("optax",))
    found = command.run_tuned(
        arguments,
        run,
        Settings(),
        load=load_model,
        only=f"rows: {', '.join(CONFIGURATIONS)}; {', '.join(VARIANTS)}",
        rates={"nargs": 4, "help": "of the row q_vdit"},
    )
    print(tuned_markdown(found))
    print(error_table(found))


if __name__ == "__main__":
    main()
