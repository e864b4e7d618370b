"""Chooses the dialect of a packed checkpoint, and checks the choice."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from convert.errors import ConversionError
from convert.nvfp4_checks import Verdict, check, compare, judge
from convert.nvfp4_dialects import (
    ALIASES,
    CHOICES,
    DIALECTS,
    declared_by,
    is_packed,
    names_of,
    pack,
)
from convert.safetensors_file import TensorInfo


class PackedSource(NamedTuple):
    """A checkpoint whose packed weights are read in their dialect.

    Attributes:
      tensors: with a `PackedInfo` for every packed weight.
      dialect: its name, or None if nothing is packed.
      unused: names that only concern activations.
      facts: what was found about the layout, for the record.
    """

    tensors: Mapping[str, TensorInfo]
    dialect: str | None
    unused: tuple[str, ...] = ()
    facts: Mapping[str, Any] | None = None


def open_packed(
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    *,
    dialect: str = "auto",
    reference: Mapping[str, TensorInfo] | None = None,
) -> PackedSource:
    """Reads packed weights in the dialect that is named, by caller or files.

    Args:
      tensors: what the files hold.
      config: the network's `config.json`.
      dialect: one of `CHOICES`; "auto" is what the files say.
      reference: unquantized weights of the same network, if there are any.

    Returns:
      The tensors of the network; those given if nothing is packed.

    Raises:
      ConversionError: if nobody names the dialect, caller and files name different
        ones, or the weights speak against it; names the likely one.
      ValueError: for another dialect.
    """
    if dialect not in CHOICES:
        raise ValueError(f"dialect: expected one of {CHOICES}, found {dialect!r}")
    dialect = ALIASES.get(dialect, dialect)
    if not is_packed(tensors):
        if dialect != "auto":
            raise ConversionError(
                f"dialect {dialect}: expected packed weights (uint8 with a "
                "weight_scale), found none"
            )
        return PackedSource(tensors, None)
    declared = declared_by(tensors, config)
    if dialect == "auto":
        if declared is None:
            raise ConversionError(
                "packed NVFP4 weights: expected --dialect, because the files do not "
                f"name theirs; {_likely(tensors)}"
            )
        dialect = declared
    elif declared not in (None, dialect):
        raise ConversionError(
            f"dialect {dialect}: the files say that they are {declared}; "
            f"{_likely(tensors)}"
        )
    try:
        read, unused = pack(tensors, DIALECTS[dialect])
    except ConversionError as error:
        raise ConversionError(
            f"dialect {dialect}: {error}\n{_likely(tensors)}"
        ) from error
    verdict = check(read, dialect)
    facts: dict[str, Any] = {"dialect": dialect, "confirmed": _confirmed(verdict)}
    if reference is not None:
        facts["reference_error"] = round(compare(read, reference, dialect), 4)
    return PackedSource(read, dialect, tuple(unused), facts)


def _confirmed(verdict: Verdict) -> list[str]:
    """What the weights themselves told."""
    titles = {
        "high_first": "nibbles",
        "tiled": "block scales",
        "reciprocal": "tensor scale",
    }
    return [t for name, t in titles.items() if getattr(verdict, name) is not None]


def _likely(tensors: Mapping[str, TensorInfo]) -> str:
    """Which dialects the weights fit, as a sentence."""
    fitting = set()
    for layout in DIALECTS.values():
        try:
            read, _ = pack(tensors, layout)
        except ConversionError:
            # The shapes exclude this one.
            continue
        if layout in judge(read).candidates():
            fitting.add(layout)
    names = names_of(fitting)
    return f"likely dialect: {names}" if names else "no known dialect fits the weights"


__all__ = ["PackedSource", "open_packed"]
