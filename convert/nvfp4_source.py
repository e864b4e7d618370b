"""Chooses the dialect of a packed checkpoint, and checks the choice."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from convert.errors import ConversionError
from convert.nvfp4_checks import Verdict, check, compare, judge
from convert.nvfp4_dialects import (
    CHOICES,
    DIALECTS,
    Layout,
    is_packed,
    names_of,
    pack,
    padded,
)
from convert.nvfp4_names import COMPRESSED, TORCHAO, canonical, declared_by, rewritten
from convert.safetensors_file import TensorInfo

_FLAT, _TILED = DIALECTS["modelopt"], DIALECTS["modelopt-swizzled"]


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
    notes: Mapping[str, str] | None = None,
) -> PackedSource:
    """Reads packed weights in the dialect that is named, by caller or files.

    Args:
      tensors: what the files hold.
      config: the network's `config.json`.
      dialect: one of `CHOICES`; "auto" is what the files say.
      reference: unquantized weights of the same network, if there are any.
      notes: the `__metadata__` of the files.

    Returns:
      The tensors of the network; those given if nothing is packed.

    Raises:
      ConversionError: if nobody names the dialect, caller and files name different
        ones, or the weights speak against it; names the likely one.
      ValueError: for another dialect.
    """
    if dialect not in CHOICES:
        raise ValueError(f"dialect: expected one of {CHOICES}, found {dialect!r}")
    notes = notes or {}
    tensors, writer = canonical(tensors, notes)
    if not is_packed(tensors):
        if dialect != "auto":
            raise ConversionError(
                f"dialect {dialect}: expected packed weights (uint8 with a "
                "weight_scale), found none"
            )
        return PackedSource(tensors, None)
    declared = (writer,) if writer else declared_by(tensors, config, notes)
    if dialect == "auto":
        if not declared:
            raise ConversionError(
                "packed NVFP4 weights: expected --dialect, because the files do not "
                f"name theirs; {_likely(tensors)}"
            )
        dialect = declared[0]
        if len(declared) > 1:
            dialect = _of_modelopt(tensors, rewritten=rewritten(notes))
    elif (declared and dialect not in declared) or dialect in {TORCHAO, COMPRESSED} - {
        writer
    }:
        said = " or ".join(declared)
        raise ConversionError(
            f"dialect {dialect}: "
            + (
                f"the files say that they are {said}"
                if said
                else "expected the key names of its writer, found others"
            )
            + f"; {_likely(tensors)}"
        )
    layout = _layout(dialect, tensors)
    try:
        read, unused = pack(tensors, layout, one_level=dialect == TORCHAO)
    except ConversionError as error:
        raise ConversionError(
            f"dialect {dialect}: {error}\n{_likely(tensors)}"
        ) from error
    verdict = check(read, dialect, layout)
    facts: dict[str, Any] = {
        "dialect": dialect,
        "layout": str(layout),
        "named_by": "the files" if dialect in declared else "the caller",
        **_told(verdict),
    }
    if reference is not None:
        error = compare(read, reference, dialect, layout)
        facts["reference_error"] = round(error, 4)
    return PackedSource(read, dialect, tuple(unused), facts)


def _layout(dialect: str, tensors: Mapping[str, TensorInfo]) -> Layout:
    """How a dialect lays out these weights; torchao has two ways."""
    if dialect != TORCHAO:
        return DIALECTS[dialect]
    tiled = {
        _torchao_tiled(info, tensors[f"{name}_scale"])
        for name, info in tensors.items()
        if name.endswith(".weight") and f"{name}_scale" in tensors
    }
    return _TILED if True in tiled else _FLAT


def _torchao_tiled(codes: TensorInfo, scales: TensorInfo) -> bool:
    """Whether the block scales have torchao's shape of tiles, [32 R, 16 C].

    No flat shape is equal to it.
    """
    if len(codes.shape) != 2:
        return False
    high, wide = padded(codes.shape[0], codes.shape[1] // 8)
    return scales.shape == (high // 4, wide * 4)


def _of_modelopt(tensors: Mapping[str, TensorInfo], *, rewritten: bool) -> str:
    """Which of ModelOpt's two layouts: as the sizes say, then its notes, the weights.

    Raises:
      ConversionError: if nothing tells.
    """
    fitting = []
    for name in ("modelopt", "modelopt-swizzled"):
        try:
            pack(tensors, DIALECTS[name])
        except ConversionError:
            continue
        fitting.append(name)
    # Where none fits, the message of the plain one is as good.
    if len(fitting) < 2 or not rewritten:
        return fitting[0] if fitting else "modelopt"
    tiled = judge(pack(tensors, _FLAT)[0]).tiled
    if tiled is None:
        raise ConversionError(
            "packed NVFP4 weights of ModelOpt, rewritten for another program: the "
            "order of their block scales is written nowhere and the weights do not "
            "tell it; expected --dialect modelopt or --dialect modelopt-swizzled (and "
            "--reference, to be sure)"
        )
    return "modelopt-swizzled" if tiled else "modelopt"


def _told(verdict: Verdict) -> dict[str, list[str]]:
    """What the weights themselves told, and what they did not."""
    titles = {
        "high_first": "nibbles",
        "tiled": "block scales",
        "reciprocal": "tensor scale",
    }
    told = {name: getattr(verdict, name) is not None for name in titles}
    return {
        "confirmed": [title for name, title in titles.items() if told[name]],
        "unconfirmed": [title for name, title in titles.items() if not told[name]],
    }


def _likely(tensors: Mapping[str, TensorInfo]) -> str:
    """Which dialects the weights fit, as a sentence."""
    fitting = set()
    for layout in DIALECTS.values():
        try:
            read, _ = pack(tensors, layout, one_level=True)
        except ConversionError:
            # The shapes exclude this one.
            continue
        if layout in judge(read).candidates():
            fitting.add(layout)
    names = names_of(fitting)
    return f"likely dialect: {names}" if names else "no known dialect fits the weights"


__all__ = ["PackedSource", "open_packed"]
