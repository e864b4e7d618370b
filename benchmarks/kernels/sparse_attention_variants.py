"""Times variants of the kernel with 8-bit scores, dense and sparse; see NOTES.

python -m benchmarks.kernels.sparse_attention_variants --out FILE [--commit ID]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.kernels.attention import median_ms
from benchmarks.kernels.sparse_attention_checks import RISES, run_rises
from benchmarks.kernels.sparse_attention_problems import PROBLEMS
from benchmarks.kernels.sparse_attention_watch import Watch
from pallas_kernels.attention import mosaic_gpu
from pallas_kernels.attention.tiles import choose_tile
from sixbit_jax.benchmark import harness, records

_ROUNDS = 2


def variants(problem, operands, selection, tau) -> dict:
    """Functions and their arguments by name."""
    best = choose_tile(problem.shape, quantized=True)
    found = {}
    for read in ("after", "during", "before"):
        tile = dataclasses.replace(best, read=read)
        run = functools.partial(mosaic_gpu.quantized_attention, tile=tile, guard=False)

        def dense(operands, run=run):
            return run(operands)

        def sparse(operands, selection, run=run):
            return run(operands, selection=selection)

        def dropped(operands, selection, run=run):
            chosen = dataclasses.replace(selection, centroids=None)
            return run(operands, selection=chosen)

        def whole(tau, operands, run=run):
            chosen = problem.choice(tau, operands)
            return run(operands, selection=chosen, guard=True)

        def rises(operands, selection, run=run):
            chosen = dataclasses.replace(selection, centroids=None)
            return run(operands, selection=chosen, rises=True)

        found[read, "dense"] = (dense, (operands,))
        found[read, "centroids"] = (sparse, (operands, selection))
        found[read, "dropped"] = (dropped, (operands, selection))
        found[read, "whole"] = (whole, (tau, operands))
        if read == "during":
            found[read, "dropped, rises"] = (rises, (operands, selection))
            found[read, "dropped, tiles in order"] = (dropped, (operands, selection))
    return found


def _no_tiles(_) -> tuple[int, int]:
    return 0, 0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit")
    args = parser.parse_args()
    watch = Watch(170)
    module = "benchmarks.kernels.sparse_attention_variants"
    head = records.header(
        ["python", "-m", module, "--out", args.out.name], commit_id=args.commit
    )
    found = []
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        jobs = {}
        for problem in PROBLEMS:
            if problem.precision != "int8":
                continue
            (operands,) = problem.operands()
            tau = jnp.float32(problem.tau(0.5))
            selection = jax.jit(problem.choice)(tau, operands)
            for key, (run, given) in variants(
                problem, operands, selection, tau
            ).items():
                first = mosaic_gpu._full_tiles
                if "in order" in key[1]:
                    first = _no_tiles
                with mock.patch.object(mosaic_gpu, "_full_tiles", first):
                    lowered = jax.jit(run).lower(*given)
                jobs[problem, key] = (pool.submit(lowered.compile), given)
        for job, _ in jobs.values():
            job.result(timeout=watch.left())
            watch.progress()
        for check in RISES:
            try:
                error = run_rises(check)
            except Exception as failure:
                error = f"{type(failure).__name__}: {failure}"[:300]
            found.append({"part": "check: rises", **check.fields(), "error": error})
            print("rises", check, error, flush=True)
            watch.progress()
        harness.warm_up()
        for turn in range(_ROUNDS):
            for (problem, (read, part)), (job, given) in jobs.items():
                ready = job.result()
                jax.block_until_ready(ready(*given))
                us = median_ms(ready, given, 8) * 1e3
                record = {
                    "op": "sparse_attention",
                    "model": problem.network,
                    "read": read,
                    "part": part,
                    "round": turn,
                    "median_us": us,
                }
                found.append(record)
                records.write(args.out, head, found)
                print(problem.network, read, part, turn, round(us), flush=True)
                watch.progress()


if __name__ == "__main__":
    main()
