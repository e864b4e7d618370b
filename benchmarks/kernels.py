"""Times and checks every kernel against XLA and PyTorch on one GPU.

    python -m benchmarks.kernels --out FILE [--only OP,...]
    python -m benchmarks.kernels --tune --out FILE

Modules `benchmarks.kernel_ops_*` that have a function `cases` add their entries. Device
times are medians over rotating inputs; correctness of every entry is measured in the
same run.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import benchmarks
from benchmarks import gemm_tune, harness, kernel_peers_torch, records
from pallas_kernels import shapes

PACKAGES = (*records.PACKAGES, "jax-cuda13-plugin", "torch")


def all_cases() -> Iterator[harness.Case]:
    """The entries of every module that registers some."""
    for module in pkgutil.iter_modules(benchmarks.__path__):
        if not module.name.startswith("kernel_ops_"):
            continue
        loaded = importlib.import_module(f"benchmarks.{module.name}")
        if hasattr(loaded, "cases"):
            yield from loaded.cases()


def _is_costly_peer(case: harness.Case) -> bool:
    """Whether it is one of XLA's products at another shape or epilogue."""
    if case.op != "int8_matmul" or not case.implementation.startswith("xla"):
        return False
    wanted = {shape[2:] for shape in shapes.block_linears("cogvideox-5b")}
    return case.note == "scales" or (case.m, case.k, case.n) not in wanted


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
    known, rest = parser.parse_known_args()
    if known.tune:
        gemm_tune.main([*rest, "--out", str(known.out)])
        return
    if rest:
        parser.error(f"unknown arguments {rest}")
    wanted = {name for name in known.only.split(",") if name}
    # Where the file was put says nothing about the measurement.
    shown = [Path(a).name if a == str(known.out) else a for a in sys.argv[1:]]
    head = records.header(
        ["python", "-m", "benchmarks.kernels", *shown], packages=PACKAGES
    )
    chosen = [
        case
        for case in all_cases()
        if (not wanted or case.op in wanted)
        and known.implementation in case.implementation
        and not (known.few_peers and _is_costly_peer(case))
    ]
    peers: Iterator[dict] = iter(())
    if known.implementation in "torch" and (not wanted or "int8_matmul" in wanted):
        if kernel_peers_torch.available():
            peers = kernel_peers_torch.run(shapes.HEADLINE)
        else:
            print("PyTorch is not importable or sees no GPU: its peers are left out")
    found = []
    for record in itertools.chain(peers, harness.run_all(chosen)):
        found.append(record)
        print(harness.show(record), flush=True)
        records.write(known.out, head, found)


if __name__ == "__main__":
    main()
