"""Q-VDiT on the bundled model: the paper's ablation, tuned and sampled.

    python -m benchmarks.quality.q_vdit --out q_vdit.json --minutes 8

Records trajectories of the full-precision model, searches learning rates on held-out
ones, tunes every variant for every weight width and scope with one compiled program,
and samples the evaluation captions with quantized weights and activations. The file is
written after every row; `--resume` continues one that was cut, `--only` runs a part.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from benchmarks.quality.q_vdit_rows import (
    CONFIGURATIONS,
    GROUPS,
    VARIANTS,
    Settings,
    names_of,
)
from benchmarks.quality.q_vdit_runs import Clock, Workbench
from benchmarks.quality.study import load_model
from sixbit_jax.benchmark import records

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
    made = [record for record in done if record["kind"] != "comparison"]
    finished = {r["method"] for r in made if r["kind"] == "quality"}
    used = json.loads(json.dumps(asdict(settings)))
    earlier = [r for r in made if r["kind"] == "settings"]
    if earlier and earlier[0]["settings"] != used:
        raise ValueError(
            f"an earlier run of other settings; expected {earlier[0]['settings']}, "
            f"found {used}"
        )
    clock = Clock(minutes)
    bench = Workbench(model, settings, clock)
    rates = earlier[0]["learning_rates"] if earlier else None
    rates, swept = bench.learning_rates(rates)
    if not earlier:
        made.append(
            {
                "kind": "settings",
                "settings": used,
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
                    after_row(with_comparisons(made, comparisons(bench), done))
    return with_comparisons(made, comparisons(bench), done)


def with_comparisons(
    rows: Sequence[dict[str, Any]],
    found: Sequence[dict[str, Any]],
    done: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Rows, the comparisons of this run, and those that only an earlier run has."""

    def pair(record: dict[str, Any]) -> tuple[str, str]:
        return record["method"], record["against"]

    new = {pair(record) for record in found}
    earlier = [r for r in done if r["kind"] == "comparison" and pair(r) not in new]
    return [*rows, *earlier, *found]


def comparisons(bench: Workbench) -> list[dict[str, Any]]:
    """Paired differences between the variants measured in this run."""
    found = []
    for configuration, scope in dict.fromkeys(
        tuple(name.split("/")[:2]) for name in bench.measured
    ):
        for left, right in COMPARISONS:
            names = [f"{configuration}/{scope}/{v}" for v in (left, right)]
            if all(name in bench.measured for name in names):
                found.append(bench.compare(*names))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.q_vdit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = Settings()
    parser.add_argument("--model", help="directory; default: the bundled checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="results file, .json")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        help=f"parts of row names: {', '.join(CONFIGURATIONS)}, all_linears, "
        f"attention, {', '.join(VARIANTS)}",
    )
    parser.add_argument("--minutes", type=float, help="start nothing after this time")
    parser.add_argument(
        "--resume",
        metavar="FILE",
        type=Path,
        nargs="?",
        const=Path(),
        help="keep the rows and learning rates of this file; without FILE, of --out",
    )
    for name, value in asdict(defaults).items():
        option = "--" + name.replace("_", "-")
        if name == "rates":
            parser.add_argument(
                option,
                type=float,
                nargs=len(GROUPS),
                metavar=tuple(GROUPS),
                help="learning rates; default: searched",
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
    names = asdict(Settings())
    settings = Settings(**{name: getattr(args, name) for name in names})
    places = {str(args.out), str(args.resume), str(args.model)}
    done = earlier_records(args.out, args.resume)
    shown = [Path(word).name if word in places else word for word in given]
    header = records.header(
        ["python", "-m", "benchmarks.quality.q_vdit", *shown],
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


def earlier_records(out: Path, resume: Path | None) -> list[dict[str, Any]]:
    """The records to keep.

    Args:
      out: the file that is going to be written.
      resume: the file to continue; `Path()` is `out` itself, None is none.

    Raises:
      FileExistsError: `out` would be overwritten.
      FileNotFoundError: there is no file to continue.
    """
    if resume is None:
        if out.exists():
            raise FileExistsError(f"{out}: expected a new file, or --resume")
        return []
    source = out if resume == Path() else resume
    if not source.is_file():
        # A first run with --resume is how a command is repeated until it is done.
        if source == out:
            return []
        raise FileNotFoundError(f"--resume: expected a results file, found no {source}")
    kept = ("quality", "settings", "sweep", "comparison")
    return [r for r in records.read(source)["records"] if r["kind"] in kept]


def markdown(content: Sequence[dict[str, Any]]) -> str:
    """The table of all rows."""
    lines = [
        "| row | weight bits | activation bits | PSNR, dB | attributes | consistency |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in content:
        if row["kind"] != "quality":
            continue
        shown = "-" if row["psnr_db"] is None else f"{row['psnr_db']:.2f}"
        if row["psnr_ci95"] is not None:
            low, high = row["psnr_ci95"]
            shown += f" ± {(high - low) / 2:.2f}"
        lines.append(
            f"| {row['method']} | {row['linear_weight_bits']:.2f} | "
            f"{row['activation_bits']:.2f} | {shown} | {row['attribute_score']:.3f} | "
            f"{row['temporal_consistency']:.4f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
