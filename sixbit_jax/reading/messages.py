"""Messages of a length that a person reads, whatever a file holds."""

from collections.abc import Iterable, Mapping
from typing import Any

# Of one value, of one line, and of the lines of one message.
_VALUE, _LINE, _LINES = 120, 600, 60
_FEW = 8
_SHORTEST = 12


def brief(value: Any, limit: int = _VALUE) -> str:
    """`repr` of a value out of a file, cut to about `limit` characters.

    Nothing larger is made on the way, however large or deep the value is.

    Args:
      value: as JSON or a pickle gives it.
      limit: the largest number of characters.
    """
    if isinstance(value, str | bytes):
        if len(value) <= limit:
            return ascii(value) if not _plain(value) else repr(value)
        unit = "characters" if isinstance(value, str) else "bytes"
        return f"{value[: limit // 2]!a}... ({len(value):,} {unit})"
    if isinstance(value, bool | float | None):
        return repr(value)
    if isinstance(value, int):
        bits = value.bit_length()
        return repr(value) if bits <= 128 else f"a number of {bits:,} bits"
    if isinstance(value, Mapping | list | tuple):
        return _brief_container(value, limit)
    return f"a {type(value).__name__}"


def _plain(value: str | bytes) -> bool:
    return isinstance(value, bytes) or value.isprintable()


def _brief_container(value: Any, limit: int) -> str:
    left, right = {list: "[]", tuple: "()"}.get(type(value), "{}")
    if value and limit < _SHORTEST:
        return f"{left}...{right}"
    parts: list[str] = []
    room = limit
    for count, item in enumerate(value):
        if room <= 0 or count == _FEW:
            parts.append(f"... {len(value) - count:,} more")
            break
        # A third, so that the number of parts is bounded at any depth.
        text = brief(item, limit // 3)
        if isinstance(value, Mapping):
            text += ": " + brief(value[item], limit // 3)
        parts.append(text)
        room -= len(text) + 2
    return left + ", ".join(parts) + right


def named(name: str) -> str:
    """A name out of a file, as it is if it is short and prints on one line."""
    plain = name.isprintable() and name.strip() == name and name
    return name if plain and len(name) <= _VALUE else brief(name)


def several(lines: Iterable[str], most: int = 20) -> list[str]:
    """The first lines of a list of problems, and how many were left out."""
    lines = list(lines)
    left = len(lines) - most
    return lines if left < 1 else [*lines[:most], f"... and {left:,} more"]


def bounded(message: str) -> str:
    """A message that can be printed, of lines and a number of lines with a limit."""
    return "\n".join(map(_bounded_line, several(message.split("\n"), _LINES)))


def _bounded_line(line: str) -> str:
    if len(line) > _LINE:
        line = f"{line[: _LINE - 40]}... ({len(line):,} characters)"
    if line.isprintable():
        return line
    # Names out of files may hold what moves a terminal's cursor.
    return "".join(c if c.isprintable() else f"{c!a}"[1:-1] for c in line)


__all__ = ["bounded", "brief", "named", "several"]
