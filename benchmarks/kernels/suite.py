"""Times and checks every kernel against XLA and PyTorch on one GPU.

    python -m benchmarks.kernels --out FILE [--only OP,...] [--jobs 8]
    python -m benchmarks.kernels --tune --out FILE

The modules of `ENTRIES` add theirs. Device times are medians over rotating inputs;
correctness of every entry is measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.kernels import corrected, elementwise, gemm, gemm_tune, norm_rope
from benchmarks.kernels import peers_torch as kernel_peers_torch
from pallas_kernels import shapes
from sixbit_jax.benchmark import harness, records
from sixbit_jax.benchmark.workers import in_turn, wait_for_turn

PACKAGES = (*records.PACKAGES, "jax-cuda13-plugin", "torch")


ENTRIES = (corrected, elementwise, gemm, norm_rope)
"""Modules with entries."""


def all_cases() -> Iterator[harness.Case]:
    """The entries of every module that registers some."""
    for module in ENTRIES:
        yield from module.cases()


def _is_costly_peer(case: harness.Case) -> bool:
    """Whether it is one of XLA's products at another shape or epilogue."""
    if not harness.is_product_of_xla(case):
        return False
    wanted = {shape[2:] for shape in shapes.block_linears("cogvideox-5b")}
    return case.note == "scales" or (case.m, case.k, case.n) not in wanted


def chosen(args: argparse.Namespace) -> list[harness.Case]:
    """The cases that the options ask for."""
    wanted = {name for name in args.only.split(",") if name}
    return [
        case
        for case in all_cases()
        if (not wanted or case.op in wanted)
        and args.implementation in case.implementation
        and not (args.few_peers and _is_costly_peer(case))
    ]


def run_part(args: argparse.Namespace, ready=lambda: None) -> Iterator[dict]:
    """The records of one process: all of them, or a part, see `--jobs`.

    Part 0 holds XLA's products and PyTorch's, the others share the rest evenly.
    """
    cases = chosen(args)
    if args.part is not None:
        products = [case for case in cases if harness.is_product_of_xla(case)]
        others = [case for case in cases if not harness.is_product_of_xla(case)]
        cases = others[args.part - 1 :: args.jobs] if args.part else products
    if not args.part and _wants_torch(args):
        ready()
        ready = lambda: None  # noqa: E731
        yield from kernel_peers_torch.run(shapes.HEADLINE)
    yield from harness.run_all(cases, ready)


def _wants_torch(args: argparse.Namespace) -> bool:
    """Whether PyTorch's products are asked for and can run."""
    if args.implementation not in "torch":
        return False
    if args.only and "int8_matmul" not in args.only.split(","):
        return False
    if not kernel_peers_torch.available():
        print("PyTorch is not importable or sees no GPU: its peers are left out")
        return False
    return True


def run_parts(args: argparse.Namespace, given: list[str]) -> Iterator[dict]:
    """The records of all parts, each in a process of its own; XLA's products last."""
    names = [str(n) for n in (*range(1, args.jobs + 1), 0)]
    command = ["-m", "benchmarks.kernels", *given, "--part"]
    for name, record in in_turn(command, names):
        yield record if "op" in record else {"op": f"part {name}", **record}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="results file")
    parser.add_argument("--only", default="", help="operations, separated by commas")
    parser.add_argument("--implementation", default="", help="substring of the name")
    parser.add_argument("--tune", action="store_true", help="time tile candidates")
    parser.add_argument(
        "--few-peers",
        action="store_true",
        help="XLA's products at the shapes of CogVideoX-5b only: their autotuning is "
        "most of the time",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=0,
        help="processes that compile and check side by side; the device is timed by "
        "one at a time (0: all in this process)",
    )
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--commit", help="recorded where there is no git repository")
    args, rest = parser.parse_known_args()
    if args.tune:
        gemm_tune.main([*rest, "--out", str(args.out)])
        return
    if rest:
        parser.error(f"unknown arguments {rest}")
    if args.part is not None:
        for record in run_part(args, lambda: wait_for_turn(args.part)):
            print(json.dumps(record), flush=True)
        return
    given = sys.argv[1:]
    # Where the file was put says nothing about the measurement.
    shown = [Path(a).name if a == str(args.out) else a for a in given]
    head = records.header(
        ["python", "-m", "benchmarks.kernels", *shown],
        packages=PACKAGES,
        commit_id=args.commit,
    )
    found = []
    for record in run_parts(args, given) if args.jobs else run_part(args):
        found.append(record)
        shown_line = harness.show(record) if "m" in record else str(record)
        print(shown_line, flush=True)
        records.write(args.out, head, found)
