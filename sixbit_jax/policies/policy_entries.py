"""Types and ranges of a policy file's entries, before anything is made of them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sixbit_jax.reading.messages import brief, named

_LARGEST_FLOAT32 = 3.4e38
_LARGEST_INT32 = 2**31 - 1
# Networks have up to 60; tables of blocks by blocks are made of it.
_MOST_BLOCKS = 1024
_MOST_SITES = 64
_MOST_FRAMES = 2**16


class _Kind(NamedTuple):
    expected: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _LARGEST_FLOAT32


def _is_matrix(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(row, list) and len(row) == len(value[0]) for row in value)
        and all(_is_number(number) for row in value for number in row)
    )


def _whole(low: int, high: int = _LARGEST_INT32) -> _Kind:
    return _Kind(
        f"a whole number from {low:,} to {high:,}",
        lambda value: type(value) is int and low <= value <= high,
    )


def _or_null(kind: _Kind) -> _Kind:
    return _Kind(
        f"null or {kind.expected}", lambda value: value is None or kind.fits(value)
    )


def _are_names(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= _MOST_SITES
        and all(_TEXT.fits(name) for name in value)
        and len(set(value)) == len(value)
    )


def _are_blocks(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MOST_BLOCKS
        and all(type(block) is int and 0 <= block < _MOST_BLOCKS for block in value)
    )


def _is_predictor(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"sites", "alpha", "beta"}
        and _are_names(value["sites"])
        and _is_matrix(value["alpha"])
        and _is_matrix(value["beta"])
    )


def _is_threshold(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(map(_is_number, value.values()))
    return _is_number(value)


_TEXT = _Kind(
    "a word or two",
    lambda value: isinstance(value, str) and 0 < len(value) <= 256,
)
_FLAG = _Kind("true or false", lambda value: type(value) is bool)
_NUMBER = _Kind("a number within float32", _is_number)
_MATRIX = _Kind("a list of equally long lists of numbers", _is_matrix)
_ENTRIES: Mapping[str, _Kind] = {
    "model_class": _TEXT,
    "config_hash": _TEXT,
    "sites": _Kind("a list of different words", _are_names),
    "num_blocks": _whole(1, _MOST_BLOCKS),
    "predictor": _or_null(
        _Kind("sites, alpha and beta, the last two [blocks, sites]", _is_predictor)
    ),
    "threshold": _or_null(_Kind("a number, or one for each site", _is_threshold)),
    "importance": _or_null(_MATRIX),
    "residual": _FLAG,
    "final_int8": _whole(0),
    "delta": _or_null(_NUMBER),
    "low": _TEXT,
    "high": _TEXT,
    "tau": _or_null(_NUMBER),
    "max_skips": _whole(1),
    "warmup": _whole(2),
    "skip_blocks": _or_null(_Kind("a list of blocks' numbers", _are_blocks)),
    "together": _or_null(_whole(1)),
    "shared": _FLAG,
    "purify": _FLAG,
    "outlier_ratio": _or_null(_NUMBER),
    "scope": _TEXT,
    "refresh_int8": _FLAG,
    "attention_max_gamma": _or_null(_NUMBER),
    "sparse_way": _or_null(_TEXT),
    "sparse_tau": _NUMBER,
    "sparse_approximate": _FLAG,
    "sparse_width": _NUMBER,
    "sparse_frames": _whole(0, _MOST_FRAMES),
    "sparse_order": _TEXT,
    "sparse_dense_steps": _NUMBER,
    "sparse_dense_blocks": _Kind("a list of blocks' numbers", _are_blocks),
    "sparse_dense_last": _FLAG,
    "sparse_max_gamma": _or_null(_NUMBER),
    "calibration": _Kind("an object", lambda value: isinstance(value, dict)),
}


def entry_problems(entries: Mapping[str, Any]) -> list[str]:
    """What is wrong with the types and ranges of a policy file's entries.

    Args:
      entries: of known names, as JSON gives them.

    Returns:
      One line each; none if everything fits.
    """
    return [
        f"{named(name)}: expected {_ENTRIES[name].expected}, found {brief(value)}"
        for name, value in entries.items()
        if not _ENTRIES[name].fits(value)
    ]


__all__ = ["entry_problems"]
