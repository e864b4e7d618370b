"""Checks and times attention to chosen blocks of keys on one GPU.

    python -m benchmarks.kernels.sparse_attention --out FILE [--minutes 4]
        [--shares 0.5,0.35] [--tiles] [--commit ID]

First every kind of kernel against the float32 definition at a small size; what is wrong
there is not timed. Then dense attention against shares of the blocks at the token
counts of CogVideoX-5b and Wan 1.3B, choosing apart and included, on random normal
inputs. Times are by the wall clock, medians of rounds of back-to-back calls; the file
is written after every case, and a call that hangs ends the program.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.kernels.attention import median_ms
from benchmarks.kernels.sparse_attention_checks import (
    CHECKS,
    CHOICES,
    RISES,
    failed,
    run_check,
    run_choice,
    run_rises,
)
from benchmarks.kernels.sparse_attention_problems import (
    OTHER_TILES,
    PROBLEMS,
    Problem,
    programs,
    rows_error,
)
from benchmarks.kernels.sparse_attention_watch import Watch
from pallas_kernels.attention import BlockSelection, choose
from sixbit_jax.benchmark import harness, records

PACKAGES = (*records.PACKAGES, "jax-cuda13-plugin")
_COMPILE_THREADS = 12
# In this order: what is reported comes first.
SHARES = (0.5, 1.0, 0.35, 0.75, 0.25, 0.15)


def compile_all(
    problems: tuple[Problem, ...], pool: concurrent.futures.Executor
) -> dict[tuple[Problem, str], concurrent.futures.Future]:
    """Compiles side by side, in the order of use."""
    return {
        (problem, name): pool.submit(
            lambda function, shapes: jax.jit(function).lower(*shapes).compile(),
            function,
            shapes,
        )
        for problem in problems
        for name, (function, shapes) in programs(problem).items()
    }


def record_of(problem: Problem, part: str, share: float | None, **more) -> dict:
    """The fields that every record has."""
    return {
        "op": "sparse_attention",
        "model": problem.network,
        "m": problem.tokens,
        "k": problem.head_dim,
        "n": problem.tokens,
        "heads": problem.heads,
        "implementation": "mosaic_gpu",
        "precision": problem.precision,
        "block_rows": problem.grid.block_rows,
        "block_kv": problem.grid.block_kv,
        "part": part,
        "target": share,
        **more,
    }


def attempt(record: dict, action: Callable[[], dict]) -> dict:
    """The record with what the action finds, or its failure, which ends nothing."""
    try:
        return record | action()
    except Exception as error:
        return record | {"failure": f"{type(error).__name__}: {str(error)[:300]}"}


class Timer:
    """Times the programs of one problem.

    Args:
        problem: whose operands are made now.
        compiled: programs by problem and name.
        watch: told of every measurement.
    """

    def __init__(self, problem: Problem, compiled: dict, watch: Watch) -> None:
        self.problem, self._watch = problem, watch
        self._compiled = compiled
        self.operands = problem.operands()
        self._dense_us = float("nan")

    def program(self, name: str) -> Callable:
        """A compiled program."""
        return self._compiled[self.problem, name].result(timeout=self._watch.left())

    def measure(self, name: str, *arguments, calls: int = 8) -> dict:
        """Median time of a call."""
        ready = self.program(name)
        jax.block_until_ready(ready(*arguments))
        self._watch.progress()
        return {"median_us": median_ms(ready, arguments, calls) * 1e3}

    def dense(self) -> dict:
        """What the others are compared with."""
        found = self.measure("dense", *self.operands)
        self._dense_us = found["median_us"]
        return found

    def choosing(self, name: str, *arguments) -> dict:
        """A part of the choice."""
        found = self.measure(name, *arguments, calls=40)
        share = found["median_us"] / self._dense_us
        predicted = self.problem.predicted(0.0, 0.0, "choice") * 1e3
        return found | {"share_of_dense_time": share, "predicted_us": predicted}

    def attention(self, part: str, selection: BlockSelection, *arguments) -> dict:
        """Attention to chosen blocks, beside what was expected of it."""
        density = float(selection.density())
        found = self.measure(part, *arguments)
        dense = self._dense_us
        predicted = self.problem.predicted(dense / 1e3, density, part) * 1e3
        return found | {
            "density": density,
            "predicted_us": predicted,
            "speedup_over_dense": dense / found["median_us"],
        }

    def check(self, selection: BlockSelection) -> dict:
        """Some rows against the definition."""
        found = self.program("centroids")(selection, *self.operands)
        error = rows_error(self.problem, selection, self.operands, found)
        self._watch.progress()
        return {"relative_error": error, "density": float(selection.density())}


def time_problem(
    problem: Problem, compiled: dict, watch: Watch, shares: tuple[float, ...]
) -> Iterator[dict]:
    """Records of one problem."""
    timer = Timer(problem, compiled, watch)
    operands, selection = timer.operands, None
    yield attempt(record_of(problem, "dense", None, density=1.0), timer.dense)
    for share in shares:
        if watch.left() < 15:
            return
        tau = jnp.float32(problem.tau(share))
        try:
            selection = timer.program("choice")(tau, *operands)
            jax.block_until_ready(selection)
        except Exception as error:
            yield record_of(problem, "choice", share, failure=str(error)[:300])
            return
        if share == shares[0]:
            yield attempt(
                record_of(problem, "check", share),
                functools.partial(timer.check, selection),
            )
            for name, arguments in {
                "choice": (tau, *operands),
                "choice: centroids": operands,
                "choice: lists": (selection.centroids, tau),
                "choice by XLA": (tau, *operands),
                "choice by XLA: centroids": operands,
            }.items():
                yield attempt(
                    record_of(problem, name, share),
                    functools.partial(timer.choosing, name, *arguments),
                )
        for part, arguments in {
            "whole": (tau, *operands),
            "centroids": (selection, *operands),
            "dropped": (selection, *operands),
        }.items():
            yield attempt(
                record_of(problem, part, share, way="threshold"),
                functools.partial(timer.attention, part, selection, *arguments),
            )
    if selection is not None:
        yield from time_fixed_masks(timer, selection)


def time_fixed_masks(timer: Timer, like: BlockSelection) -> Iterator[dict]:
    """Records of masks that need no choice; centroids are those of `like`."""
    problem = timer.problem
    options = {
        "tokens_per_frame": problem.tokens_per_frame,
        "centroids": like.centroids,
    }
    for way, make in {
        "radial": functools.partial(choose.radial, width=0.5),
        "window": functools.partial(choose.window, frames=2),
    }.items():
        selection = make(1, problem.heads, problem.grid, **options)
        yield attempt(
            record_of(problem, "dropped", None, way=way),
            functools.partial(
                timer.attention, "dropped", selection, selection, *timer.operands
            ),
        )


def show(record: dict[str, Any]) -> str:
    """One line for the terminal."""
    shown = {
        key: f"{value:.4g}" if isinstance(value, float) else value
        for key, value in record.items()
        if key not in ("op", "k", "n", "implementation") and value is not None
    }
    return " ".join(f"{key}={value}" for key, value in shown.items())


def small_checks(jobs: dict, watch: Watch) -> Iterator[dict]:
    """Records of the checks, in the order of their end."""
    for job in concurrent.futures.as_completed(jobs, timeout=watch.left()):
        check = jobs[job]
        part = "check"
        if check in CHOICES:
            part = "check: choice"
        elif check in RISES:
            part = "check: rises"
        record = {"op": "sparse_attention", "part": part, **check.fields()}
        yield attempt(record, lambda job=job: {"relative_error": job.result()})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="results file")
    parser.add_argument("--minutes", type=float, default=4.0, help="when to stop")
    parser.add_argument("--shares", help="of the blocks, separated by commas")
    parser.add_argument("--tiles", action="store_true", help="the other tiles too")
    parser.add_argument("--commit", help="recorded where there is no git repository")
    args = parser.parse_args()
    watch = Watch(args.minutes * 60)
    command = [
        "python",
        "-m",
        "benchmarks.kernels.sparse_attention",
        "--out",
        args.out.name,
    ]
    shares = SHARES
    if args.shares:
        shares = tuple(float(share) for share in args.shares.split(","))
        command += ["--shares", args.shares]
    problems = PROBLEMS
    if args.tiles:
        problems, command = (*problems, *OTHER_TILES), [*command, "--tiles"]
    head = records.header(command, packages=PACKAGES, commit_id=args.commit)
    found = []

    def keep(record: dict, mark: str = "") -> None:
        found.append(record)
        records.write(args.out, head, found)
        print(mark + show(record), flush=True)
        watch.progress()

    with concurrent.futures.ThreadPoolExecutor(_COMPILE_THREADS) as pool:
        jobs = {pool.submit(run_choice, check): check for check in CHOICES}
        jobs |= {pool.submit(run_rises, check): check for check in RISES}
        jobs |= {pool.submit(run_check, check): check for check in CHECKS}
        compiled = compile_all(problems, pool)
        wrong = set()
        for record in small_checks(jobs, watch):
            if failed(record) and record["part"] == "check":
                wrong.add((record["precision"], record["k"]))
            keep(record, "WRONG " if failed(record) else "")
        usable = [p for p in problems if (p.precision, p.head_dim) not in wrong]
        wanted = [compiled[key] for key in compiled if key[0] in usable]
        # Compiling uses the device and the host, which timing wants to itself.
        for _ in concurrent.futures.as_completed(wanted, timeout=watch.left()):
            watch.progress()
        print(f"compiled, {watch.left():.0f} s left", flush=True)
        harness.warm_up()
        for problem in usable:
            for record in time_problem(problem, compiled, watch, shares):
                keep(record)
        pool.shutdown(wait=False, cancel_futures=True)
    if len(usable) < len(problems):
        raise SystemExit(f"wrong results, not timed: {sorted(wrong)}")


if __name__ == "__main__":
    main()
