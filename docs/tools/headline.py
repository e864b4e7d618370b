"""Holds the README's table of headline figures against the records that it links to.

`python -m docs.tools.headline` prints every figure that no record has.
"""

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LINK = re.compile(r"\]\((benchmarks/results/[^)]+\.json)\)")
# What a row measures, by a word in its label: (name of the field, its unit).
_FIELDS = {
    "ms per step": ("step_ms", 1.0),
    "memory, GB": ("peak_bytes", 1e9),
    "seconds": ("end_to_end_s", 1.0),
    "PSNR": ("psnr_db", 1.0),
}
# Figures inside a label: words around the number, and where a record has it.
_INSIDE = (
    (r"weights (\d+\.\d+) times smaller", "weights_smaller", 1.0),
    (r"peak \[?(\d+\.\d+)(?: GB)?", "peak_bytes", 1e9),
    (r"-> (\d+\.\d+) GB", "peak_bytes", 1e9),
    (r"(\d+\.\d+) bits", "activation_bits", 1.0),
    (r"(\d+)% (?:of the steps )?skipped", "skip_fraction", 0.01),
    (r"(\d+) steps,", "steps", 1.0),
)


@dataclass(frozen=True)
class Row:
    """A row of the table, with what stands for "the same" filled in.

    Attributes:
      label: its first cell, without links.
      bf16, here, factor: the numbers in these cells, as written.
      field, unit: what of a record they are.
      records: of all files that the row links to.
    """

    label: str
    bf16: tuple[str, ...]
    here: tuple[str, ...]
    factor: tuple[str, ...]
    field: str
    unit: float
    records: tuple[dict, ...]


def rows_of(text: str) -> list[Row]:
    """The rows of the table whose header ends in `record`.

    Raises:
      ValueError: there is none, or a row says neither what it measures nor where from.
    """
    table = re.search(r"^\|.*\| record \|\n\|[-:| ]+\n((?:\|.*\n)+)", text, re.M)
    if table is None:
        raise ValueError("README: expected a table with a column `record`, found none")
    rows: list[Row] = []
    for line in table[1].splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        label = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", cells[0])
        named = next((value for word, value in _FIELDS.items() if word in label), None)
        files = _LINK.findall(line)
        if (named is None or not files) and not (rows and "the same" in line):
            raise ValueError(f"README: expected a unit and a record, found {line}")
        field, unit = named or (rows[-1].field, rows[-1].unit)
        records = tuple(_records(files)) if files else rows[-1].records
        bf16, here, factor = (tuple(_NUMBER.findall(cell)) for cell in cells[1:4])
        rows.append(Row(label, bf16, here, factor, field, unit, records))
    return rows


def _records(files: Iterable[str]) -> Iterable[dict]:
    for file in files:
        yield from json.loads((ROOT / file).read_text(encoding="utf-8"))["records"]


def problems(row: Row) -> list[str]:
    """Every figure of a row that no record has.

    Numbers in the cells are for the parts of the label ("...; and a third skipped"):
    each must be that of a record with the skips that its part names. A factor must be
    the quotient of two such records, before they were rounded.
    """
    found = []
    parts = row.label.split("; and")
    pairs: list[tuple[list[float], list[float]]] = []
    base = [r for r in row.records if r.get("program") == "bf16"]
    for index, here in enumerate(row.here):
        part = parts[min(index, len(parts) - 1)]
        fitting = [
            record
            for record in row.records
            if record not in base
            and _skips(part, row.field, record)
            and _attends(row.label, record)
        ]
        ours = _values(fitting, row.field, row.unit, here)
        if not ours:
            found.append(f"{row.label}: {here}: no record has it")
        theirs = [
            value
            for number in row.bf16
            for value in _values(base, row.field, row.unit, number)
        ]
        if row.bf16 and not theirs:
            found.append(f"{row.label}: bf16 {row.bf16}: no record has it")
        pairs.append((theirs, ours))
    for factor, (theirs, ours) in zip(row.factor, pairs, strict=False):
        if not any(_is(factor, a / b) for a in theirs for b in ours):
            found.append(f"{row.label}: {factor}: no quotient of its figures")
    if row.factor and len(row.factor) != len(row.here):
        found.append(f"{row.label}: expected a factor for each figure")
    return [*found, *_inside(row)]


def _inside(row: Row) -> list[str]:
    """Figures in the label of a row that no record has."""
    found = []
    shown = [
        record
        for record in row.records
        if any(_values([record], row.field, row.unit, number) for number in row.here)
    ]
    for words, field, unit in _INSIDE:
        # Memory may be that of another run; what a run was is that of those shown.
        records = row.records if field == "peak_bytes" else shown
        for number in re.findall(words, row.label):
            if not _values(records, field, unit, number):
                found.append(f"{row.label}: {number} ({field}): no record has it")
    return found


def _skips(part: str, field: str, record: dict) -> bool:
    """Whether a record skips what a part of a label says."""
    share = record.get("skip_fraction")
    if share is None or field in ("peak_bytes", "psnr_db"):
        return True
    if percent := re.search(r"(\d+)% of the steps skipped", part):
        return _is(percent[1], share * 100)
    return abs(share - (1 / 3 if "third" in part else 0.0)) < 0.01


def _attends(label: str, record: dict) -> bool:
    """Whether attention is to as many blocks of keys as a label says."""
    share = record.get("density", 1.0)
    return abs(share - (0.5 if "half of the key blocks" in label else 1.0)) < 0.05


def _values(
    records: Iterable[dict], field: str, unit: float, number: str
) -> list[float]:
    """The values of a field that are this number when rounded as it is."""
    values = (record.get(field) for record in records if "part" not in record)
    return [v / unit for v in values if v is not None and _is(number, v / unit)]


def _is(number: str, value: float) -> bool:
    """Whether a value, rounded to as many places, is a number that is written."""
    places = len(number.partition(".")[2])
    return f"{value:.{places}f}" == number


def main() -> int:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = [problem for row in rows_of(text) for problem in problems(row)]
    print("\n".join(found) or "every figure stands in its record")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
