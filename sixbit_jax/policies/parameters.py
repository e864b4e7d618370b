"""What the parameters of policies may be: declared once, in a policy's signature.

    @declared
    def tdc(tau: Annotated[float, Number(finite=True)], *,
            max_skips: Annotated[int, Whole(1)] = 2, ...) -> Policy:

The call checks its arguments by it. Policy files take types, ranges and defaults from
it (`policy_file.ENTRIES`), and what calibrates policies takes defaults from it.
"""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from sixbit_jax.policies._common import checked_count, checked_number
from sixbit_jax.policies.base import Policy
from sixbit_jax.routes import Route

_LARGEST_FLOAT32 = 3.4e38
_LARGEST_INT32 = 2**31 - 1
# Networks have up to 60; tables of blocks by blocks are made of it.
MOST_BLOCKS = 1024
_MOST_SITES = 64


# By identity: `Annotated` gives out one object for annotations that are equal.
@dataclass(frozen=True, eq=False)
class Kind:
    """What a parameter may hold: in a call, and in a file.

    Attributes:
      expected: in a file, in words.
      fits: whether a value of a file is one.
    """

    expected: str
    fits: Callable[[Any], bool]

    def checked(self, owner: str, name: str, value: Any) -> Any:
        """The argument of a call as it is used.

        Raises:
          ValueError: it is none of this kind.
        """
        del owner, name
        return value

    def from_file(self, value: Any) -> Any:
        """The argument that a value of a file stands for."""
        return value

    def to_file(self, value: Any) -> Any:
        """The value of a file that stands for an argument."""
        return value


class Number(Kind):
    """A number in [low, high]; in files one that float32 holds."""

    def __init__(
        self, *, low: float = 0.0, high: float = math.inf, finite: bool = False
    ):
        super().__init__("a number within float32", is_number)
        self._range: dict[str, Any] = {"low": low, "high": high, "finite": finite}

    def checked(self, owner: str, name: str, value: Any) -> float:
        """As a float."""
        return checked_number(owner, name, value, **self._range)

    def to_file(self, value: float) -> float | None:
        """JSON has no infinity: null."""
        return None if math.isinf(value) else value

    def from_file(self, value: float | None) -> float:
        """Null is no limit."""
        return math.inf if value is None else value


class Whole(Kind):
    """A whole number of at least `low`; in files one from `low` to `high`."""

    def __init__(self, low: int, high: int = _LARGEST_INT32):
        super().__init__(
            f"a whole number from {low:,} to {high:,}",
            lambda value: type(value) is int and low <= value <= high,
        )
        self._low = low

    def checked(self, owner: str, name: str, value: Any) -> int:
        """As an int."""
        return checked_count(owner, name, value, low=self._low)


class Flag(Kind):
    """True or false."""

    def __init__(self):
        super().__init__("true or false", lambda value: type(value) is bool)

    def checked(self, owner: str, name: str, value: Any) -> bool:
        """As a bool."""
        del owner, name
        return bool(value)


class Text(Kind):
    """A word or two."""

    def __init__(self):
        super().__init__("a word or two", is_text)


class RouteName(Text):
    """A route, in files by its name."""

    def checked(self, owner: str, name: str, value: Any) -> Route:
        """As a `Route`."""
        del owner, name
        return Route(value)

    def from_file(self, value: str) -> Route:
        """The route of a name."""
        return Route[value]

    def to_file(self, value: Route) -> str:
        """The name of a route."""
        return value.name


class Blocks(Kind):
    """Numbers of blocks."""

    def __init__(self):
        super().__init__("a list of blocks' numbers", _are_blocks)

    def from_file(self, value: Any) -> tuple[int, ...]:
        """As a tuple."""
        return tuple(value)


class OrNone(Kind):
    """What another kind holds, or None."""

    def __init__(self, kind: Kind):
        super().__init__(
            f"null or {kind.expected}", lambda value: value is None or kind.fits(value)
        )
        self._kind = kind

    def checked(self, owner: str, name: str, value: Any) -> Any:
        """As the other kind."""
        return None if value is None else self._kind.checked(owner, name, value)

    def from_file(self, value: Any) -> Any:
        """As the other kind."""
        return None if value is None else self._kind.from_file(value)

    def to_file(self, value: Any) -> Any:
        """As the other kind."""
        return None if value is None else self._kind.to_file(value)


def stored(kind: Kind) -> Kind:
    """The same in files; in calls something else checks the argument."""
    return Kind(kind.expected, kind.fits)


def is_number(value: Any) -> bool:
    """Whether a value of a file is a number that float32 holds."""
    return type(value) in (int, float) and abs(value) <= _LARGEST_FLOAT32


def is_text(value: Any) -> bool:
    """Whether a value of a file is a short text."""
    return isinstance(value, str) and 0 < len(value) <= 256


def are_names(value: Any) -> bool:
    """Whether a value of a file is a list of different names of sites."""
    return (
        isinstance(value, list)
        and 0 < len(value) <= _MOST_SITES
        and all(is_text(name) for name in value)
        and len(set(value)) == len(value)
    )


def is_matrix(value: Any) -> bool:
    """Whether a value of a file is a table of numbers."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(row, list) and len(row) == len(value[0]) for row in value)
        and all(is_number(number) for row in value for number in row)
    )


def _are_blocks(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MOST_BLOCKS
        and all(type(block) is int and 0 <= block < MOST_BLOCKS for block in value)
    )


class Parameter(NamedTuple):
    """Attributes: what it may be, and its default (`REQUIRED`: none)."""

    kind: Kind
    default: Any


REQUIRED = inspect.Parameter.empty


@functools.cache
def parameters(policy: Callable[..., Policy]) -> dict[str, Parameter]:
    """The declared parameters of a policy, by name.

    Args:
      policy: a function such as `tdc`, whose parameters are annotated with a `Kind`.
    """
    found = {}
    for name, parameter in inspect.signature(policy).parameters.items():
        kinds = [a for a in get_args(parameter.annotation) if isinstance(a, Kind)]
        if kinds:
            found[name] = Parameter(kinds[0], parameter.default)
    return found


def default_of(policy: Callable[..., Policy], name: str) -> Any:
    """The default of a policy's parameter."""
    return parameters(policy)[name].default


def declared[**P](policy: Callable[P, Policy]) -> Callable[P, Policy]:
    """A policy whose arguments are checked by their annotations before it is called."""
    signature, kinds = inspect.signature(policy), parameters(policy)

    @functools.wraps(policy)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Policy:
        given = signature.bind(*args, **kwargs)
        for name in given.arguments.keys() & kinds.keys():
            given.arguments[name] = kinds[name].kind.checked(
                policy.__name__, name, given.arguments[name]
            )
        return policy(*given.args, **given.kwargs)

    return checked


__all__ = [
    "MOST_BLOCKS",
    "REQUIRED",
    "Blocks",
    "Flag",
    "Kind",
    "Number",
    "OrNone",
    "Parameter",
    "RouteName",
    "Text",
    "Whole",
    "are_names",
    "declared",
    "default_of",
    "is_matrix",
    "is_number",
    "is_text",
    "parameters",
    "stored",
]
