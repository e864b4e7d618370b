"""Every figure of the README's table stands in a record that its row links to."""

import re
from dataclasses import replace

import pytest

from docs.tools.headline import ROOT, Row, problems, rows_of

README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = rows_of(README)
RECORDS = (
    {"program": "bf16", "skip_fraction": 0.0, "step_ms": 1000.4},
    {"program": "int8", "skip_fraction": 0.0, "step_ms": 500.3},
    {"program": "int8", "skip_fraction": 0.33, "step_ms": 333.3},
)
ROW = Row(
    label="a network: ms per step; and a third skipped",
    bf16=("1000",),
    here=("500", "333"),
    factor=("2.00", "3.00"),
    field="step_ms",
    unit=1.0,
    records=RECORDS,
)


def other(number: str) -> str:
    """The same number with another last digit, by half of the range of digits."""
    return number[:-1] + str((int(number[-1]) + 5) % 10)


def test_there_are_rows_with_figures():
    assert 4 <= len(ROWS) <= 8
    assert all(row.here and row.records for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.label[:30])
def test_the_figures_are_those_of_the_records(row):
    assert problems(row) == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.label[:30])
@pytest.mark.parametrize("cell", ["bf16", "here", "factor"])
def test_another_figure_in_the_readme_is_found(row, cell):
    for index, number in enumerate(getattr(row, cell)):
        numbers = list(getattr(row, cell))
        numbers[index] = other(number)
        assert problems(replace(row, **{cell: tuple(numbers)})), (cell, number)


def test_other_figures_in_a_label_are_found():
    for row in ROWS:
        for number in re.findall(r"\d+\.\d+(?= GB| times| bits)", row.label):
            changed = row.label.replace(number, other(number))
            assert problems(replace(row, label=changed)), number


def test_a_row_of_its_records_has_no_problems():
    assert problems(ROW) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"here": ("500", "500")},  # not skipped
        {"here": ("1000", "333")},  # the baseline
        {"bf16": ("500",)},
        {"factor": ("2.00", "2.00")},
        {"factor": ("2.00",)},
        {"label": "a network: ms per step (peak 3.00 GB); and a third skipped"},
    ],
)
def test_a_figure_of_another_record_does_not_do(wrong):
    assert problems(replace(ROW, **wrong))


def test_a_table_without_records_is_refused():
    with pytest.raises(ValueError, match="expected a table"):
        rows_of("| a | b |\n| --- | --- |\n| 1 | 2 |\n")
    with pytest.raises(ValueError, match="expected a unit and a record"):
        rows_of("| | record |\n| --- | --- |\n| ms per step | none |\n")
