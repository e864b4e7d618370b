"""MPQ-DMv2 on the bundled model: W2A6, W3A6 and W4A8, ablation, rotation, sweeps.

    python -m benchmarks.quality.mpq_dm --out mpq_dm.json --minutes 7

Records trajectories of the full-precision model, searches learning rates and numbers
of MTRD at 3 bits on held-out ones, measures the errors of weights and outputs, tunes
the variants with one compiled program (two with rotation), and samples the evaluation
captions with quantized weights and activations. The file is written after every row;
`--resume` continues one that was cut, `--only` runs a part.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
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
from benchmarks.quality.q_vdit import markdown, with_comparisons
from benchmarks.quality.q_vdit_runs import Clock
from benchmarks.quality.study import load_model
from sixbit_jax.benchmark import records


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
    made = [record for record in done if record["kind"] != "comparison"]
    earlier = [r for r in made if r["kind"] == "settings"]
    if earlier and earlier[0]["settings"] != _plain(settings):
        raise ValueError(
            "an earlier run of other settings; expected "
            f"{earlier[0]['settings']}, found {_plain(settings)}"
        )
    clock = Clock(minutes)
    bench = Bench(model, settings, clock)
    if earlier:
        bench.numbers |= earlier[0]["numbers"]
    else:
        swept = bench.search() if any(VARIANTS[v].tuned for _, v in wanted) else []
        made.append(
            {
                "kind": "settings",
                "settings": _plain(settings),
                "numbers": dict(bench.numbers),
                "devices": len(jax.devices()),
            }
        )
        made += swept
    finished = {(r["kind"], r["method"], r.get("bits")) for r in made if "method" in r}

    def add(record: dict[str, Any]) -> None:
        made.append(record)
        if after_row is not None:
            after_row(with_comparisons(made, comparisons(bench), done))

    for configuration, variant in wanted:
        bits = CONFIGURATIONS[configuration].weight_bits
        if clock.over():
            clock.log(f"time is over: {configuration}/{variant} and later are left out")
            break
        untuned = not VARIANTS[variant].tuned
        if untuned and ("error", variant, bits) not in finished:
            add(bench.errors(bits, variant))
        if ("quality", f"{configuration}/{variant}", None) not in finished:
            add(bench.row(configuration, variant))
    return with_comparisons(made, comparisons(bench), done)


def comparisons(bench: Bench) -> list[dict[str, Any]]:
    """Paired differences between the rows measured in this run."""
    return [
        bench.compare(f"{configuration}/{left}", f"{configuration}/{right}")
        for configuration in CONFIGURATIONS
        for left, right in COMPARISONS
        if f"{configuration}/{left}" in bench.measured
        and f"{configuration}/{right}" in bench.measured
    ]


def _plain(settings: Settings) -> dict[str, Any]:
    """Settings as they come back from JSON."""
    values = asdict(settings)
    return values | {"rates": None if values["rates"] is None else [*values["rates"]]}


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.mpq_dm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help="directory; default: the bundled checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="results file, .json")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        help=f"rows: {', '.join(CONFIGURATIONS)}; {', '.join(VARIANTS)}",
    )
    parser.add_argument("--minutes", type=float, help="start nothing after this time")
    parser.add_argument(
        "--resume", action="store_true", help="continue the file at --out"
    )
    for name, value in asdict(Settings()).items():
        option = "--" + name.replace("_", "-")
        if name == "rates":
            parser.add_argument(
                option, type=float, nargs=4, default=value, help="of the row q_vdit"
            )
        else:
            kind: Any = type(value)
            parser.add_argument(option, type=kind, default=value)
    parser.add_argument("--commit", help="recorded where there is no git repository")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(given)
    settings = Settings(**{name: getattr(args, name) for name in asdict(Settings())})
    done = []
    if args.resume and args.out.is_file():
        done = records.read(args.out)["records"]
    elif args.out.exists():
        raise FileExistsError(f"{args.out}: expected a new file, or --resume")
    shown = [Path(w).name if w in (str(args.out), args.model) else w for w in given]
    header = records.header(
        ["python", "-m", "benchmarks.quality.mpq_dm", *shown],
        commit_id=args.commit,
        packages=(*records.PACKAGES, "optax"),
    )
    found = run(
        load_model(args.model),
        settings,
        only=args.only,
        done=done,
        minutes=args.minutes,
        after_row=lambda content: records.write(args.out, header, content),
    )
    records.write(args.out, header, found)
    print(markdown(found))
    print(error_table(found))


if __name__ == "__main__":
    main()
