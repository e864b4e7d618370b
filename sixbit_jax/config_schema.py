"""One strict check for every configuration: names, types and ranges of its fields.

A configuration class names its `Schema`, so that a file and a constructor accept the
same values:

    @dataclass(frozen=True)
    class XConfig(FileConfig):
        schema = Schema("X config", {"num_layers": integer(1, 1024), "bias": boolean()})

        num_layers: int = 2
        bias: bool = True

A bool is no number and a number no bool, numbers are finite and bounded (a mistyped
exponent is an error and not a program that hangs), and every problem is in one message.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import numpy as np

from sixbit_jax.reading.messages import brief, named, several


class ConfigError(ValueError):
    """A configuration that is refused.

    Attributes:
      title: what it configures.
      problems: one line per field.
    """

    def __init__(self, title: str, problems: list[str]):
        super().__init__("\n  ".join([f"{title}:", *problems]))
        self.title = title
        self.problems = problems


@dataclass(frozen=True)
class Check:
    """What a field may hold.

    Attributes:
      expected: in words, for errors.
      read: the value as it is kept; raises ValueError, TypeError or OverflowError for
        one that is refused.
    """

    expected: str
    read: Callable[[Any], Any]


def integer(low: int, high: int, *, multiple_of: int = 1) -> Check:
    """A whole number in [low, high], a multiple of `multiple_of`; no bool, no float."""

    def read(value: Any) -> int:
        if isinstance(value, bool | np.bool_):
            raise TypeError(value)
        number = operator.index(value)
        if not low <= number <= high or number % multiple_of:
            raise ValueError(value)
        return number

    kind = "whole number" if multiple_of == 1 else f"multiple of {multiple_of}"
    return Check(f"a {kind} from {low} to {high}", read)


def number(low: float, high: float, *, above: bool = False) -> Check:
    """A finite number in [low, high], or in (low, high] if `above`; no bool."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(
            value, int | float | np.integer | np.floating
        ):
            raise TypeError(value)
        # Before it becomes a float, which an int of 400 digits cannot.
        if not low <= value <= high or (above and value == low):
            raise ValueError(value)
        return float(value)

    start = f"above {low:g} and at most" if above else f"from {low:g} to"
    return Check(f"a number {start} {high:g}", read)


def boolean() -> Check:
    """True or false, and neither 0 nor 1 nor a word."""

    def read(value: Any) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise TypeError(value)
        return bool(value)

    return Check("True or False", read)


def choice(*allowed: str) -> Check:
    """One of a few words."""

    def read(value: Any) -> Any:
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(value)
        return value

    words = ", ".join(map(repr, allowed))
    return Check(f"one of {words}", read)


def fixed(only: Any) -> Check:
    """The one value that is supported, of the same type."""

    def read(value: Any) -> Any:
        if type(value) is not type(only) or value != only:
            raise ValueError(value)
        return value

    return Check(repr(only), read)


def optional(check: Check) -> Check:
    """What another check accepts, or null."""
    return Check(
        f"{check.expected}, or None",
        lambda value: None if value is None else check.read(value),
    )


def sequence(
    check: Check, *, length: int | None = None, at_most: int = 100_000
) -> Check:
    """A list, kept as a tuple."""

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) > at_most:
            raise TypeError(value)
        if length is not None and len(value) != length:
            raise ValueError(value)
        return tuple(check.read(part) for part in value)

    count = "" if length is None else f"{length} values, each "
    return Check(f"a list of {count}{check.expected}", read)


@dataclass(frozen=True)
class Schema:
    """The fields of a configuration.

    Attributes:
      title: what it configures, for errors.
      fields: what each field of the class may hold.
      others: fields of the file that the class does not keep: those of which one value
        is supported, and those that have no effect.
      required: fields that a file may not leave out.
      relations: what fields must be to each other: the problem, or None, by the names
        of the fields; asked when each of those is valid.
    """

    title: str
    fields: Mapping[str, Check]
    others: Mapping[str, Check] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    relations: Mapping[tuple[str, ...], Callable[[Any], str | None]] = field(
        default_factory=dict
    )

    def check(self, config: Any) -> None:
        """Checks a frozen dataclass while it is made, and narrows its fields.

        Raises:
          ConfigError: names every field that is refused.
        """
        problems: list[str] = []
        valid: set[str] = set()
        for name, rule in self.fields.items():
            count = len(problems)
            kept = _kept(name, getattr(config, name), rule, problems)
            object.__setattr__(config, name, kept)
            if len(problems) == count:
                valid.add(name)
        for names, relation in self.relations.items():
            problem = relation(config) if valid.issuperset(names) else None
            if problem is not None:
                problems.append(problem)
        if problems:
            raise ConfigError(self.title, problems)

    def read[T](
        self,
        values: Any,
        make: Callable[..., T],
        *,
        defaults: Mapping[str, Any] | None = None,
    ) -> T:
        """Makes a configuration of the contents of a file.

        Args:
          values: the parsed file. Keys that begin with `_` are the writer's own notes.
          make: the class, which calls `check`.
          defaults: of fields that the file leaves out, where they are not the class's.

        Raises:
          ConfigError: names every field that is unknown or refused.
        """
        if not isinstance(values, Mapping):
            found = type(values).__name__
            raise ConfigError(self.title, [f"expected a JSON object, found a {found}"])
        chosen = dict(defaults or {})
        problems: list[str] = []
        unknown: list[str] = []
        for name, value in values.items():
            if name in self.fields:
                chosen[name] = value
            elif name in self.others:
                _kept(name, value, self.others[name], problems)
            elif not str(name).startswith("_"):
                unknown.append(f"{named(str(name))}: not a field of a {self.title}")
        problems += several(unknown)
        missing = [name for name in self.required if name not in chosen]
        if missing:
            problems += [f"{name}: expected a value, found none" for name in missing]
            raise ConfigError(self.title, problems)
        try:
            made = make(**chosen)
        except ConfigError as error:
            raise ConfigError(self.title, problems + error.problems) from None
        if problems:
            raise ConfigError(self.title, problems)
        return made


class FileConfig:
    """A frozen dataclass that is read from a `config.json` and written to one.

    Attributes:
      schema: what the fields may hold.
      constants: entries of the file of which one value is supported.
    """

    schema: ClassVar[Schema]
    constants: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        self.schema.check(self)

    @classmethod
    def file_values(cls, values: Any) -> Any:
        """The entries by the names of the fields; as they are unless overridden."""
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads the mapping of a `config.json`.

        Raises:
          ConfigError: a ValueError that lists all values that the port does not
            support, and all unknown keys.
        """
        return cls.schema.read(cls.file_values(values), cls)

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `from_dict` reads, as the original library writes it."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}  # pyrefly: ignore
        lists = {k: list(v) for k, v in own.items() if isinstance(v, tuple)}
        return own | lists | dict(self.constants)


def as_many_as(name: str, other: str, values: Any, default: int) -> Any:
    """Entries of a file in which null says "as many as the other entry says"."""
    if isinstance(values, Mapping) and values.get(name, 0) is None:
        return {**values, name: values.get(other, default)}
    return values


def _kept(name: str, value: Any, rule: Check, problems: list[str]) -> Any:
    """The value as it is kept; what is refused is added to the problems."""
    try:
        return rule.read(value)
    except (ValueError, TypeError, OverflowError):
        problems.append(f"{name}: expected {rule.expected}, found {brief(value)}")
        return value


__all__ = [
    "Check",
    "ConfigError",
    "FileConfig",
    "Schema",
    "as_many_as",
    "boolean",
    "choice",
    "fixed",
    "integer",
    "number",
    "optional",
    "sequence",
]
