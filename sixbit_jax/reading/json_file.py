"""JSON that somebody else wrote: one object, of a bounded size, or a clear error.

Python's own reader takes NaN and Infinity, numbers of any length, the last of two equal
names, and as much memory as a text of brackets asks for.
"""

import json
import math
import os
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from sixbit_jax.reading.messages import brief
from sixbit_jax.reading.regular_file import open_regular

# Configurations have 1 KiB, an index of the largest networks 6 MiB.
LARGEST_BYTES = 16 * 2**20
_DEEPEST = 64
# A value takes 70 bytes of memory or so, also where it takes two bytes of text.
MOST_VALUES = 1_000_000
_LONGEST_INTEGER = 40
_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "a UTF-8 byte order mark",
    b"\xff\xfe": "UTF-16 (or UTF-32)",
    b"\xfe\xff": "UTF-16",
    b"\x00\x00\xfe\xff": "UTF-32",
}
_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json_object(
    path: str | os.PathLike,
    *,
    largest: int = LARGEST_BYTES,
    most_values: int = MOST_VALUES,
) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
      path: a regular file, or a symbolic link to one.
      largest: the largest number of bytes; the file is not read if it has more.
      most_values: about how many values it may hold.

    Returns:
      The object. Its numbers are finite, no name occurs twice, and nothing is nested
      deeper than 64 levels.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is something else; says what was expected and what was found.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        text = stream.read(largest + 1) if size <= largest else b""
    if max(size, len(text)) > largest:
        raise ValueError(
            f"{path}: expected JSON of at most {largest:,} bytes, found "
            f"{max(size, len(text)):,}"
        )
    return parse_json_object(text, path, most_values=most_values)


def parse_json_object(
    text: bytes, where: object, *, most_values: int = MOST_VALUES
) -> dict[str, Any]:
    """The JSON object that a text holds; see `read_json_object`.

    Args:
      text: UTF-8.
      where: the file's name, for errors.
      most_values: about how many values it may hold.

    Raises:
      ValueError: it is something else.
    """
    try:
        return _parse(text, most_values)
    except ValueError as error:
        # Also those of the parser, which say the place.
        raise ValueError(f"{where}: expected a JSON object, found {error}") from error


def _parse(text: bytes, most_values: int) -> dict[str, Any]:
    for mark, name in _BYTE_ORDER_MARKS.items():
        if text.startswith(mark):
            raise ValueError(f"{name} (expected UTF-8 without a byte order mark)")
    if not text.strip():
        raise ValueError("nothing: the file is empty")
    if b"\0" in text:
        raise ValueError("zero bytes (UTF-16, or no text at all; expected UTF-8)")
    values = sum(map(text.count, (b",", b"[", b"{")))
    if values > most_values:
        raise ValueError(f"about {values:,} values (expected at most {most_values:,})")
    try:
        found = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_float,
            parse_int=_integer,
        )
    except UnicodeDecodeError as error:
        raise ValueError(
            f"bytes that are not UTF-8 (the first at {error.start:,})"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error})") from error
    except RecursionError as error:
        raise ValueError(_too_deep()) from error
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}")
    _check_nesting(found)
    if _LONE_SURROGATE.search(text):
        _check_text(found)
    return found


def _too_deep() -> str:
    return f"values nested deeper than {_DEEPEST} levels"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise ValueError(f"the name {brief(twice)} twice in one object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}, which JSON does not have")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]}, which no float64 holds")
    return number


def _integer(text: str) -> int:
    if len(text) > _LONGEST_INTEGER:
        raise ValueError(f"a whole number of {len(text):,} digits")
    return int(text)


def _check_nesting(found: dict[str, Any]) -> None:
    level: list[Any] = [found]
    for _ in range(_DEEPEST):
        level = [
            value
            for container in level
            for value in _values(container)
            if isinstance(value, dict | list)
        ]
        if not level:
            return
    raise ValueError(_too_deep())


def _values(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _check_text(value: Any) -> None:
    """Refuses halves of surrogate pairs, which no file name and no output can hold."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{value[:40]!a}, with half of a surrogate pair"
            ) from error
    elif isinstance(value, dict):
        for name, part in value.items():
            _check_text(name)
            _check_text(part)
    elif isinstance(value, list):
        for part in value:
            _check_text(part)


__all__ = ["LARGEST_BYTES", "MOST_VALUES", "parse_json_object", "read_json_object"]
