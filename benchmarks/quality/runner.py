"""What the quality tables of all methods share: time, rows, comparisons, files.

A table that samples under policies (`study`, `dvd_quant`) is a `SampledTable`; one that
tunes weights first (`q_vdit`, `mpq_dm`) has `Settings` and can be continued (`resume`).
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.quality import report as quality_report
from benchmarks.quality.metrics import Measured, difference, measure, summary
from benchmarks.quality.runs import Samples, Study, Task
from sixbit_jax.benchmark import records

_KEPT = ("quality", "settings", "sweep", "error", "comparison")


@dataclass
class Clock:
    """Time since the start, and whether it is up."""

    minutes: float | None

    def __post_init__(self) -> None:
        self.began = time.monotonic()

    def over(self) -> bool:
        """Whether nothing more may be started."""
        passed = time.monotonic() - self.began
        return self.minutes is not None and passed > 60 * self.minutes

    def log(self, text: str) -> None:
        """One line on standard error."""
        passed = time.monotonic() - self.began
        print(f"[{passed:6.1f} s] {text}", file=sys.stderr, flush=True)

    def until_over[T](
        self, parts: Iterable[T], name_of: Callable[[T], str]
    ) -> Iterator[T]:
        """The parts that may still be started; says which is the first left out."""
        for part in parts:
            if self.over():
                self.log(f"time is over: {name_of(part)} and later rows are left out")
                return
            yield part


def comparison(
    measured: Mapping[str, Measured],
    left: str,
    right: str,
    samples: int,
    quantity: str = "psnr_db",
) -> dict[str, Any]:
    """The record of the paired difference of two rows."""
    return {
        "kind": "comparison",
        "method": left,
        "against": right,
        "quantity": quantity,
        "samples": samples,
        **difference(measured[left], measured[right], quantity),
    }


def comparisons(
    measured: Mapping[str, Measured], pairs: Iterable[Sequence[str]], samples: int
) -> list[dict[str, Any]]:
    """Records of the pairs of which both rows are measured.

    Args:
      measured: by row.
      pairs: (row, row) in PSNR, or (row, row, quantity).
      samples: the samples of each row.
    """
    return [
        comparison(measured, pair[0], pair[1], samples, *pair[2:])
        for pair in pairs
        if pair[0] in measured and pair[1] in measured
    ]


@dataclass
class SampledTable:
    """Rows that one `Study` samples; `write` may be called at any time.

    Attributes:
      study: programs.
      task: the evaluated captions.
      pairs: rows that are compared.
      measured, rows: what there is so far.
    """

    study: Study
    task: Task
    pairs: Sequence[Sequence[str]] = ()
    measured: dict[str, Measured] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def draws(
        self, kind: Any, settings: Iterable[Any], reference: Samples | None = None
    ) -> list[tuple[Samples, Measured]]:
        """The task sampled with each setting, measured against the reference.

        Args:
          kind: the kind of the program.
          settings: one, or several draws of a random one.
          reference: samples in full precision; None: these are.
        """
        found = []
        for setting in settings:
            samples = self.study.run(kind, [setting], self.task)
            latents = (samples if reference is None else reference).latents
            grid = self.study.grid
            found.append((samples, measure(samples, latents, self.task, grid)))
        return found

    def add_row(
        self,
        name: str,
        description: str,
        kind: Any,
        draws: Sequence[tuple[Samples, Measured]],
        **facts: Any,
    ) -> Measured:
        """Adds a row, the mean of its draws, with `facts` beside what was measured."""
        options = self.study.options
        measured = draws[0][1].mean_with([m for _, m in draws[1:]])
        stored = self.study.weight_bytes(kind)
        self.measured[name] = measured
        row = {
            "kind": "quality",
            "method": name,
            "description": description,
            "captions": len(set(self.task.captions)),
            "samples": len(self.task),
            "steps": options.num_steps,
            "guidance_scale": options.guidance_scale,
            "dtype": kind.dtype or options.dtype,
            **summary(measured),
            "weight_bytes": stored,
            "weight_bits": 8 * stored / self.study.num_parameters(),
        }
        self.rows.append(row | facts)
        return measured

    def records(self) -> list[dict[str, Any]]:
        """Rows, and paired differences."""
        return [*self.rows, *comparisons(self.measured, self.pairs, len(self.task))]

    def write(self, out: Path, header: dict[str, Any]) -> None:
        """Writes the results file, and the Markdown table beside it."""
        content = self.records()
        records.write(out, header, content)
        out.with_suffix(".md").write_text(quality_report.markdown(content))


def refuse_unknown(methods: Iterable[str], rows: Mapping[str, Any]) -> None:
    """Refuses names that are no rows.

    Raises:
      ValueError: lists them.
    """
    if unknown := [name for name in methods if name not in rows]:
        raise ValueError(f"methods: expected {', '.join(rows)}; found {unknown}")


def resumed(
    settings: Any, done: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The records of an earlier run that are kept, and its settings record.

    Args:
      settings: the settings of this run, a dataclass.
      done: records of the earlier run.

    Raises:
      ValueError: it had other settings.
    """
    made = [record for record in done if record["kind"] != "comparison"]
    earlier = next((r for r in made if r["kind"] == "settings"), None)
    used = plain(settings)
    if earlier is not None and earlier["settings"] != used:
        raise ValueError(
            f"an earlier run of other settings; expected {earlier['settings']}, "
            f"found {used}"
        )
    return made, earlier


def plain(settings: Any) -> dict[str, Any]:
    """A dataclass as it comes back from JSON."""
    return json.loads(json.dumps(asdict(settings)))


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
    return [r for r in records.read(source)["records"] if r["kind"] in _KEPT]


def tuned_markdown(content: Sequence[dict[str, Any]]) -> str:
    """The table of all rows of a study that tunes weights."""
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


@dataclass(frozen=True)
class StudyCommand:
    """The command line of a study.

    Attributes:
      module: what `python -m` runs.
      description: the description of the help.
      packages: whose versions the record names, beside the usual ones.
    """

    module: str
    description: str | None
    packages: tuple[str, ...] = ()

    def parser(self) -> argparse.ArgumentParser:
        """A parser with what every study takes."""
        parser = argparse.ArgumentParser(
            prog=f"python -m {self.module}",
            description=self.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add = parser.add_argument
        add("--model", help="directory; default: the bundled checkpoint")
        add("--minutes", type=float, help="start no row after this time")
        add("--out", type=Path, required=True, help="results file, .json")
        add("--commit", help="recorded where there is no git repository")
        return parser

    def header(self, given: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
        """The header of the results file.

        Where files were put says nothing about the measurement: paths are shown by
        their last name.
        """
        places = {str(v) for v in vars(args).values() if isinstance(v, Path)}
        places.add(str(args.model))
        shown = [Path(word).name if word in places else word for word in given]
        return records.header(
            ["python", "-m", self.module, *shown],
            commit_id=args.commit,
            packages=(*records.PACKAGES, *self.packages),
        )

    def run_tuned(
        self,
        arguments: Sequence[str] | None,
        run: Callable[..., list[dict[str, Any]]],
        defaults: Any,
        *,
        load: Callable[[str | None], Any],
        only: str,
        rates: Mapping[str, Any],
    ) -> list[dict[str, Any]]:
        """Runs a study that tunes weights, and writes its file after every row.

        Args:
          arguments: the arguments of the command line; None: `sys.argv`.
          run: `run(model, settings, only=, done=, minutes=, after_row=)`.
          defaults: its settings, a dataclass; every field is an option.
          load: the model of `--model`.
          only: help of `--only`.
          rates: how the option of the field `rates` is declared.
        """
        given = list(sys.argv[1:] if arguments is None else arguments)
        parser = self.parser()
        parser.add_argument("--only", nargs="+", default=[], help=only)
        parser.add_argument(
            "--resume",
            metavar="FILE",
            type=Path,
            nargs="?",
            const=Path(),
            help="keep the rows and numbers of this file; without FILE, of --out",
        )
        for name, value in asdict(defaults).items():
            option = "--" + name.replace("_", "-")
            if name == "rates":
                parser.add_argument(option, type=float, default=value, **rates)
            else:
                kind: Any = type(value)
                parser.add_argument(option, type=kind, default=value)
        args = parser.parse_args(given)
        settings = type(defaults)(**{n: getattr(args, n) for n in asdict(defaults)})
        done = earlier_records(args.out, args.resume)
        header = self.header(given, args)
        found = run(
            load(args.model),
            settings,
            only=args.only,
            done=done,
            minutes=args.minutes,
            after_row=lambda content: records.write(args.out, header, content),
        )
        records.write(args.out, header, found)
        return found


__all__ = [
    "Clock",
    "SampledTable",
    "StudyCommand",
    "comparison",
    "comparisons",
    "earlier_records",
    "plain",
    "refuse_unknown",
    "resumed",
    "tuned_markdown",
    "with_comparisons",
]
