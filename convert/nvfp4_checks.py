"""Is a packed checkpoint read in the layout that it was written in?

A wrong layout gives weights of the right shape and nearly the right distribution. Three
things tell, in networks that were trained:

* Tensor scale: 2688 times it is the largest weight. Where that is thousands, and its
  reciprocal gives ordinary weights, the reciprocal is stored.
* Block scales: rows and columns of a weight have typical sizes of their own. Read in
  the right order, the logarithms of the scales are a row's plus a column's part to a
  larger share than read in another order.
* Nibbles: a channel that is large where it is made (a row of the value projection or of
  the feed-forward's first linear) is large where it is read (a column of the output
  projection or of the second linear). Exchanged nibbles exchange neighbouring columns,
  and rows stay.

Each gives a number of standard deviations; below `DECISIVE` nothing is concluded. With
unquantized weights at hand, the error against them decides.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from convert.errors import ConversionError
from convert.nvfp4_dialects import (
    DIALECTS,
    Layout,
    PackedInfo,
    names_of,
    packed_in,
    with_layout,
)
from convert.safetensors_file import TensorInfo
from sixbit_jax.reading.messages import several

DECISIVE = 6.0
# The largest weight of a linear: training keeps it far inside of this.
_PLAUSIBLE_AMAX = (1e-4, 500.0)
_SCALE_TO_AMAX = 6 * 448
# Round-to-nearest NVFP4 is 0.09 from ordinary weights, other readings 0.9 and more.
_LARGEST_ERROR = 0.35
# (where channels are made, where they are read), inside one block.
_LINKS = (
    ("attn1.to_v", "attn1.to_out.0"),
    ("attn2.to_v", "attn2.to_out.0"),
    ("ff.net.0.proj", "ff.net.2"),
    ("ffn.net.0.proj", "ffn.net.2"),
)


@dataclass(frozen=True)
class Verdict:
    """What the weights themselves say; None where they do not say.

    Attributes:
      high_first, tiled, reciprocal: as in `Layout`.
      deviations: standard deviations behind the first two, positive for yes.
    """

    high_first: bool | None
    tiled: bool | None
    reciprocal: bool | None
    deviations: Mapping[str, float] = field(default_factory=dict)

    def candidates(self) -> list[Layout]:
        """The known layouts that nothing speaks against."""
        return [
            layout
            for layout in DIALECTS.values()
            if all(
                getattr(self, name) in (None, getattr(layout, name))
                for name in ("high_first", "tiled", "reciprocal")
            )
        ]


def judge(tensors: Mapping[str, TensorInfo], *, layers: int = 3) -> Verdict:
    """Reads a few layers and tells in which layout they are written.

    Args:
      tensors: with `PackedInfo` for packed weights, in any layout of theirs.
      layers: first, last and others evenly between.
    """
    chosen = _sample(packed_in(tensors), layers)
    tiles = _tiled_deviations(chosen)
    nibbles = _nibble_deviations(tensors, chosen, tiled=_decide(tiles))
    # A scale of zero is refused elsewhere.
    scales = [_stored_scale(info) or np.nan for info in chosen.values()]
    plain = np.mean([_plausible(_SCALE_TO_AMAX * scale) for scale in scales])
    inverse = np.mean([_plausible(_SCALE_TO_AMAX / scale) for scale in scales])
    reciprocal = None
    if max(plain, inverse) > 0.9 and min(plain, inverse) < 0.1:
        reciprocal = bool(inverse > plain)
    return Verdict(
        high_first=_decide(nibbles),
        tiled=_decide(tiles),
        reciprocal=reciprocal,
        deviations={"high_first": round(nibbles, 1), "tiled": round(tiles, 1)},
    )


def check(tensors: Mapping[str, TensorInfo], dialect: str, layout: Layout) -> Verdict:
    """Refuses a dialect that the weights speak against.

    Args:
      tensors: read in that dialect.
      dialect: its name.
      layout: how it lays out these weights.

    Raises:
      ConversionError: names what is wrong, and the likely dialect; and for block scales
        that are negative or NaN and tensor scales that are not positive.
    """
    _check_scales(packed_in(tensors))
    verdict = judge(tensors)
    wrong = [
        name
        for name in ("high_first", "tiled", "reciprocal")
        if getattr(verdict, name) not in (None, getattr(layout, name))
    ]
    if not wrong:
        return verdict
    titles = {
        "high_first": "the order of the nibbles",
        "tiled": "the order of the block scales",
        "reciprocal": "the tensor scale (reciprocal or not)",
    }
    likely = names_of(verdict.candidates())
    raise ConversionError(
        f"dialect {dialect} ({layout}): the decoded weights speak against "
        f"{', '.join(titles[name] for name in wrong)}; "
        + (f"likely dialect: {likely}" if likely else "no known dialect fits")
        + f" (deviations: {dict(verdict.deviations)})"
    )


def compare(
    tensors: Mapping[str, TensorInfo],
    reference: Mapping[str, TensorInfo],
    dialect: str,
    chosen_layout: Layout,
    *,
    layers: int = 3,
) -> float:
    """Refuses a dialect in which the weights are not near to the unquantized ones.

    Args:
      tensors: read in that dialect.
      reference: the same network's unquantized weights.
      dialect: its name.
      chosen_layout: how it lays out these weights.
      layers: how many are read.

    Returns:
      The relative L2 error over what was read.

    Raises:
      ConversionError: names the dialect in which they would be near, if there is one;
        or if the reference has none of the weights.
    """
    chosen = {
        name: info
        for name, info in _sample(packed_in(tensors), layers).items()
        if name in reference and reference[name].shape == info.shape
    }
    if not chosen:
        raise ConversionError(
            "reference: expected the packed weights' names and shapes, found none"
        )
    errors = {layout: _error(chosen, reference, layout) for layout in DIALECTS.values()}
    error = errors[chosen_layout]
    if error <= _LARGEST_ERROR:
        return error
    near = [layout for layout, e in errors.items() if e <= _LARGEST_ERROR]
    likely = names_of(near)
    raise ConversionError(
        f"dialect {dialect}: expected weights near the reference, found a relative "
        f"error of {error:.3g}; "
        + (f"likely dialect: {likely}" if likely else "no known dialect fits")
    )


def _error(
    chosen: Mapping[str, PackedInfo],
    reference: Mapping[str, TensorInfo],
    layout: Layout,
) -> float:
    difference = total = 0.0
    for name, info in chosen.items():
        if not _fits(info, layout):
            return float("inf")
        expected = reference[name].read().astype(np.float32)
        found = with_layout(info, layout).read()
        difference += float(np.square(found - expected, dtype=np.float64).sum())
        total += float(np.square(expected, dtype=np.float64).sum())
    return float(np.sqrt(difference / max(total, 1e-30)))


def _fits(info: PackedInfo, layout: Layout) -> bool:
    """Whether the block scales can be in the order of the layout."""
    rows, columns = info.grid
    whole = rows % 128 == 0 and columns % 4 == 0
    return whole or layout.tiled == info.layout.tiled


def _sample(packed: dict[str, PackedInfo], layers: int) -> dict[str, PackedInfo]:
    numbers = {name: re.search(r"\.(\d+)\.", name) for name in packed}
    found = sorted({int(m[1]) for m in numbers.values() if m})
    if len(found) <= layers:
        return packed
    places = np.linspace(0, len(found) - 1, layers).round().astype(int)
    taken = {found[place] for place in places}
    return {n: packed[n] for n, m in numbers.items() if m and int(m[1]) in taken}


def _decide(deviations: float) -> bool | None:
    return None if abs(deviations) < DECISIVE else deviations > 0


def _stored_scale(info: PackedInfo) -> float:
    if info.tensor_scale is None:
        return 1.0
    return float(info.tensor_scale.read().astype(np.float64).reshape(-1)[0])


def _plausible(amax: float) -> bool:
    return _PLAUSIBLE_AMAX[0] <= amax <= _PLAUSIBLE_AMAX[1]


def _check_scales(packed: Mapping[str, PackedInfo]) -> None:
    problems = []
    for name, info in packed.items():
        assert info.scales is not None
        scale = _stored_scale(info)
        if not (np.isfinite(scale) and scale > 0):
            problems.append(f"{name}: expected a positive tensor scale, found {scale}")
        # The sign, and the one NaN of E4M3.
        stored = info.scales.read().reshape(-1).view(np.uint8)
        bad = int(np.count_nonzero(stored >= 0x7F))
        if bad:
            problems.append(
                f"{name}_scale: expected positive block scales, found {bad:,} of "
                f"{stored.size:,} negative or NaN"
            )
    if problems:
        raise ConversionError("\n  ".join(["packed weights:", *several(problems)]))


def _tiled_deviations(chosen: Mapping[str, PackedInfo]) -> float:
    """How much better rows and columns explain the scales as tiles than flat."""
    total, count = 0.0, 0
    for info in chosen.values():
        rows, columns = info.grid
        if rows % 128 or columns % 4:
            # The number of bytes tells, and was checked.
            return np.inf if info.layout.tiled else -np.inf
        parts = []
        for tiled in (True, False):
            layout = Layout(info.layout.high_first, tiled, info.layout.reciprocal)
            scales = with_layout(info, layout).read_scales()
            parts.append(_structure(np.log2(scales.astype(np.float32) + 2.0**-10)))
        total += parts[0] - parts[1]
        count += 1
    return total / np.sqrt(2 * max(count, 1))


def _structure(logs: np.ndarray) -> float:
    """Deviations of the share that rows and columns explain from that by chance."""
    centred = logs - logs.mean()
    total = np.square(centred).sum()
    if total == 0:
        return 0.0
    rows, columns = centred.shape
    explained = columns * np.square(centred.mean(1)).sum()
    explained += rows * np.square(centred.mean(0)).sum()
    freedom = rows + columns - 2
    return float((explained / total * centred.size - freedom) / np.sqrt(2 * freedom))


def _nibble_deviations(
    tensors: Mapping[str, TensorInfo],
    chosen: Mapping[str, PackedInfo],
    *,
    tiled: bool | None,
) -> float:
    """How much better channels agree with the even index high than low."""
    total, count = 0.0, 0
    for name, info in chosen.items():
        source = _link(name)
        if source is None or source not in tensors:
            continue
        made = _as_written(tensors[source], tiled)
        columns = np.linalg.norm(_as_written(info, tiled).read(), axis=0)
        rows = np.linalg.norm(made.read().astype(np.float32), axis=1)
        if rows.size != columns.size:
            continue
        swapped = columns.reshape(-1, 2)[:, ::-1].reshape(-1)
        by_order = [_rank_correlation(rows, c) for c in (columns, swapped)]
        low, high = by_order[::-1] if info.layout.high_first else by_order
        total += (np.arctanh(high) - np.arctanh(low)) * np.sqrt(rows.size - 3)
        count += 1
    return total / np.sqrt(2 * max(count, 1))


def _as_written(info: TensorInfo, tiled: bool | None) -> TensorInfo:
    if not isinstance(info, PackedInfo) or tiled is None:
        return info
    if tiled == info.layout.tiled:
        return info
    layout = Layout(info.layout.high_first, tiled, info.layout.reciprocal)
    return with_layout(info, layout)


def _link(name: str) -> str | None:
    """The weight that makes the channels which this one reads."""
    for source, target in _LINKS:
        if name.endswith(f".{target}.weight"):
            return name.removesuffix(f"{target}.weight") + f"{source}.weight"
    return None


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    first, second = (np.argsort(np.argsort(x, kind="stable")) for x in (a, b))
    found = np.corrcoef(first, second)[0, 1]
    return float(np.clip(found, -0.999, 0.999))


__all__ = ["DECISIVE", "Verdict", "check", "compare", "judge"]
