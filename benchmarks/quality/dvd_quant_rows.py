"""The rows of the DVD-Quant table, in order of interest, and what is compared."""

from dataclasses import dataclass
from typing import Literal

from benchmarks.quality.dvd_quant_runs import SMOOTH, DvdKind
from sixbit_jax.routes import Route

FULL = DvdKind("full")
_PLAIN = (Route.BF16, Route.INT4, Route.INT8)
_ARQ = (Route.ARQ4, Route.ARQ8)
_CHANNEL = (Route.ARQ4_CHANNEL, Route.ARQ8_CHANNEL)
_NVFP4 = (Route.NVFP4, Route.INT8, Route.BF16, Route.ARQ_NVFP4)
BLOCKS = (16, 32, 64, 128)
"""Channels per live scale that are swept; 128 is the default of the table's rows."""

MINMAX = DvdKind("minmax", routes=_PLAIN)
SMOOTHED = DvdKind(SMOOTH, routes=_PLAIN)
ROTATED = DvdKind("minmax_rotated", routes=_PLAIN)
BGR = DvdKind("bgr", routes=_PLAIN)
BGR_ROTATED = DvdKind("bgr_rotated", routes=_PLAIN)
ARQ = DvdKind("minmax_rotated", routes=_ARQ)
BOTH = DvdKind("bgr_rotated", routes=_ARQ)
BOTH_CACHED = DvdKind("bgr_rotated", routes=_ARQ, cached=True)
DEFINITION = DvdKind("bgr_rotated", routes=_CHANNEL)
ARQ_DEFINITION = DvdKind("minmax_rotated", routes=_CHANNEL)
NVFP4 = DvdKind("nvfp4", routes=_NVFP4)
NVFP4_REFINED = DvdKind("nvfp4_refined", routes=_NVFP4)

Schedule = Literal[
    "low", "high", "delta", "low_high", "high_low", "alternate", "random", "bf16"
]


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
      description: one line for readers.
      kind: the program.
      schedule: how steps choose between the two routes: always one, delta-GBS at the
        target bits, the first half low and the second high, the reverse, in turn, or
        at random; "bf16": activations as they are.
      low, high: the 4-bit and the 8-bit route.
      cache: "step" or "tdc" on top, at the target skip fraction.
    """

    description: str
    kind: DvdKind
    schedule: Schedule
    low: Route = Route.INT4
    high: Route = Route.INT8
    cache: str | None = None


_METHODS = {
    "minmax": ("MinMax", MINMAX, Route.INT4, Route.INT8),
    "smoothquant": ("SmoothQuant", SMOOTHED, Route.INT4, Route.INT8),
    "rotation": ("rotation only", ROTATED, Route.INT4, Route.INT8),
    "bgr": ("BGR only", BGR, Route.INT4, Route.INT8),
    "arq": ("ARQ only", ARQ, Route.ARQ4, Route.ARQ8),
    "dvd": ("BGR + ARQ", BOTH, Route.ARQ4, Route.ARQ8),
}
_EXTRA = {
    "rotation_bgr": ("BGR + rotation", BGR_ROTATED, Route.INT4, Route.INT8),
    "dvd_channel": ("BGR + ARQ per channel", DEFINITION, *_CHANNEL),
    "arq_channel": ("ARQ per channel only", ARQ_DEFINITION, *_CHANNEL),
}
_WIDTHS: tuple[tuple[str, Schedule, str], ...] = (
    ("w4a4", "low", "W4A4"),
    ("w4a8", "high", "W4A8"),
    ("w4a6", "delta", "W4A6 by delta-GBS"),
)
_SCHEDULES: dict[Schedule, str] = {
    "low_high": "first half 4 bits, then 8",
    "high_low": "first half 8 bits, then 4",
    "alternate": "4 and 8 bits in turn",
    "random": "4 or 8 bits at random steps, mean of 2 draws",
}


def _rows() -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for suffix, schedule, width in _WIDTHS:
        for name, (title, kind, low, high) in _METHODS.items():
            rows[f"{name}_{suffix}"] = Row(
                f"{title}, {width}", kind, schedule, low, high
            )
    for schedule, text in _SCHEDULES.items():
        rows[f"dvd_{schedule}"] = Row(
            f"BGR + ARQ, {text}", BOTH, schedule, Route.ARQ4, Route.ARQ8
        )
    for suffix, schedule, width in _WIDTHS[:2]:
        for name, (title, kind, low, high) in _EXTRA.items():
            rows[f"{name}_{suffix}"] = Row(
                f"{title}, {width}", kind, schedule, low, high
            )
    for name, kind in (("nvfp4", NVFP4), ("nvfp4_refined", NVFP4_REFINED)):
        words = f"NVFP4 weights{', refined' * (kind == NVFP4_REFINED)}"
        pair = (Route.NVFP4, Route.INT8)
        rows[f"{name}_w4a4"] = Row(f"{words}, NVFP4 activations", kind, "low", *pair)
        rows[f"{name}_w4a8"] = Row(f"{words}, INT8 activations", kind, "high", *pair)
        rows[f"{name}_arq_w4a4"] = Row(
            f"{words}, ARQ in front of NVFP4", kind, "low", Route.ARQ_NVFP4, Route.INT8
        )
    for cache, title in (("step", "step cache"), ("tdc", "TDC, blocks together")):
        for suffix, schedule, width in _WIDTHS[1:]:
            rows[f"dvd_{suffix}_{cache}"] = Row(
                f"BGR + ARQ, {width}, {title}",
                BOTH_CACHED,
                schedule,
                Route.ARQ4,
                Route.ARQ8,
                cache,
            )
    for name, kind in (
        ("minmax", MINMAX),
        ("bgr", BGR),
        ("rotation", ROTATED),
        ("rotation_bgr", BGR_ROTATED),
        ("nvfp4", NVFP4),
        ("nvfp4_refined", NVFP4_REFINED),
    ):
        rows[f"{name}_w4a16"] = Row(
            f"{name} weights, activations as they are", kind, "bf16"
        )
    for block in BLOCKS:
        if block == BOTH.arq_block:
            continue
        kind = DvdKind("bgr_rotated", routes=_ARQ, arq_block=block)
        for suffix, schedule, width in _WIDTHS[:2]:
            rows[f"dvd_block{block}_{suffix}"] = Row(
                f"BGR + ARQ, {width}, {block} channels per scale",
                kind,
                schedule,
                Route.ARQ4,
                Route.ARQ8,
            )
    return rows


ROWS = _rows()


def _comparisons() -> list[tuple[str, str]]:
    pairs = []
    for width in ("w4a4", "w4a8"):
        pairs += [(f"dvd_{width}", f"{name}_{width}") for name in _METHODS][:-1]
        pairs += [
            (f"rotation_{width}", f"minmax_{width}"),
            (f"bgr_{width}", f"minmax_{width}"),
            (f"arq_{width}", f"rotation_{width}"),
            (f"arq_channel_{width}", f"rotation_{width}"),
            (f"dvd_{width}", f"rotation_bgr_{width}"),
            (f"dvd_channel_{width}", f"dvd_{width}"),
            (f"nvfp4_refined_{width}", f"nvfp4_{width}"),
            (f"dvd_{width}", f"nvfp4_refined_{width}"),
        ]
        pairs += [
            (f"dvd_block{block}_{width}", f"dvd_{width}")
            for block in BLOCKS
            if block != BOTH.arq_block
        ]
    pairs += [("dvd_w4a6", f"dvd_{name}") for name in _SCHEDULES]
    pairs += [("dvd_w4a6", f"{name}_w4a6") for name in list(_METHODS)[:-1]]
    pairs += [("dvd_w4a8", "dvd_w4a6"), ("dvd_w4a6", "dvd_w4a4")]
    pairs += [
        ("nvfp4_arq_w4a4", "nvfp4_w4a4"),
        ("nvfp4_refined_arq_w4a4", "nvfp4_refined_w4a4"),
        ("nvfp4_refined_w4a16", "nvfp4_w4a16"),
        ("rotation_bgr_w4a16", "rotation_w4a16"),
        ("bgr_w4a16", "minmax_w4a16"),
        ("dvd_w4a6_step", "dvd_w4a8_step"),
        ("dvd_w4a6_tdc", "dvd_w4a8_tdc"),
    ]
    return pairs


COMPARISONS = _comparisons()
"""(row, row): paired differences of PSNR that the results file reports."""
