"""Times variants of the row kernels against the ones that are used, on one GPU.

    python -m benchmarks.row_variants --out FILE

Every variant compiles and is checked in a process of its own; they are timed in turn.
What was learned from it is in `notes_kernels_elementwise.md`.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp

from benchmarks import harness, records
from benchmarks import kernel_ops_elementwise as entries
from benchmarks.workers import in_turn, wait_for_turn
from pallas_kernels.row_tiles import RowTiling, front, loop

Cases = list[harness.Case]


def _used(chosen: Callable[[harness.Case], bool] = lambda case: True) -> Cases:
    return [
        case
        for case in entries.cases()
        if case.op in ("quantize_int8", "quantize_nvfp4", "block_stats")
        and case.implementation == "mosaic_gpu"
        and chosen(case)
    ]


def _with_constant(module, name: str, value, chosen) -> Cases:
    """The cases with another value of a module's constant, for the whole process."""
    setattr(module, name, value)
    return _used(chosen)


def _narrow_rows() -> Cases:
    """Norms of 1,920 channels on four-row tiles, more blocks per multiprocessor."""

    def int8(arrays):
        tiling = RowTiling(4, 1920, blocks_per_sm=3)
        site = entries._site("norm", arrays)
        return entries.int8_kernel.quantize_int8(site, with_stats=False, tiling=tiling)

    def nvfp4(arrays):
        tiling = RowTiling(4, 1920, blocks_per_sm=2)
        site, scale = entries._site("norm", arrays), jnp.float32(entries.TENSOR_SCALE)
        return entries.nvfp4_kernel.quantize_nvfp4(
            site, scale, with_stats=False, tiling=tiling
        )

    functions = {"quantize_int8": int8, "quantize_nvfp4": nvfp4}
    cases = _used(lambda case: case.note == "norm" and case.k == 1920)
    return [dataclasses.replace(c, function=functions[c.op]) for c in cases]


def _four_row_stats() -> Cases:
    """block_stats with an NVFP4 cache on the smaller tile."""

    def stats(x, y, old):
        return entries.stats_kernel.block_stats(
            x, y, old, cache_format="nvfp4", tiling=RowTiling(4, 3072)
        )

    cases = _used(lambda c: (c.op, c.note, c.k) == ("block_stats", "nvfp4", 3072))
    return [dataclasses.replace(case, function=stats) for case in cases]


VARIANTS: dict[str, Callable[[], Cases]] = {
    "default": _used,
    "gelu2": lambda: _with_constant(
        front, "SHARED_RECIPROCALS", False, lambda c: c.note == "gelu"
    ),
    "allwait": lambda: _with_constant(
        loop,
        "ONE_WAITS",
        False,
        lambda c: c.op == "quantize_nvfp4" and c.note in ("gelu", "plain"),
    ),
    "affine_late": lambda: _with_constant(
        front, "AFFINE_AHEAD", False, lambda c: c.note == "norm"
    ),
    "acc2": lambda: _with_constant(front, "ACCUMULATED", 2, lambda c: c.note == "norm"),
    "tile4x3": _narrow_rows,
    "tile4": _four_row_stats,
}
"""Two divisions per pair of GELUs; every warp waits; modulation is loaded late; sums of
the Hadamard transform by the tensor cores; smaller tiles."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="results file")
    parser.add_argument("--part", choices=list(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--commit", help="recorded where there is no git repository")
    args = parser.parse_args()
    if args.part:
        ready = lambda: wait_for_turn(args.part)  # noqa: E731
        for record in harness.run_all(VARIANTS[args.part](), ready):
            print(json.dumps(record), flush=True)
        return
    head = records.header(
        ["python", "-m", "benchmarks.row_variants", "--out", args.out.name],
        commit_id=args.commit,
    )
    found = []
    command = ["-m", "benchmarks.row_variants", "--out", "-", "--part"]
    for name, record in in_turn(command, list(VARIANTS)):
        found.append(record | {"variant": name})
        shown = harness.show(record) if "op" in record else record["failure"]
        print(f"{name:12} {shown}", flush=True)
        records.write(args.out, head, found)


if __name__ == "__main__":
    main()
