"""Tables on the terminal (rich) and in Markdown."""

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table


def byte_size(count: float) -> str:
    """A number of bytes with a decimal unit, e.g. "17.3 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None
) -> Table:
    """A rich table: the first column names the row, the others are right-aligned."""
    result = Table(title=title, title_justify="left", title_style="bold")
    for number, name in enumerate(columns):
        result.add_column(name, justify="right" if number else "left")
    for row in rows:
        result.add_row(*row)
    return result


def facts_table(facts: Mapping[str, str]) -> Table:
    """Names and values without lines between them."""
    result = Table(show_header=False, box=None, pad_edge=False)
    result.add_column(style="bold")
    result.add_column()
    for name, value in facts.items():
        result.add_row(name, value)
    return result


def print_table(content: Table) -> None:
    """Prints to standard output; never narrower than what a pipe's reader needs."""
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=160)
    console.print(content)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table in Markdown."""
    lines = ["| " + " | ".join(columns) + " |"]
    lines.append("| --- |" + " ---: |" * (len(columns) - 1))
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
