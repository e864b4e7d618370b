"""What sparse attention costs in quality, against dense attention and skipped steps.

    python -m benchmarks.quality.sparse --out sparse_quality.json --prompts 4 \\
        [--model DIR --prompt-embeds FILE] [--blocks 48x32] [--shares 0.75,0.5] ...

Any network and prompts that `sixbit calibrate` takes; the bundled model without
options. Every row is sampled from the same noise as dense attention in full precision,
video by video, and compared with it (PSNR of the latents). For each precision of the
weights:

* dense attention;
* each way of choosing at each share of the blocks of keys: the threshold test with
  skipped blocks counted by their means, and dropped; radial and window masks. The
  threshold is the one that computes the share, the first steps included;
* whole steps skipped, evenly, in the time that the share would take;
* sparse attention and skipped steps together, in the time of each share.

Time is counted, not measured: attention has --attention-fraction of a step's. Short
videos need blocks smaller than the kernel's to say anything (--blocks QUERIESxKEYS).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pallas_kernels.attention import BlockGrid, choose
from sixbit_jax.benchmark import records
from sixbit_jax.benchmark.plans import skip_plan
from sixbit_jax.calibration import CalibrationRuns, find_sparse_tau
from sixbit_jax.calibration.runs import Sampled
from sixbit_jax.commands import _inputs, calibrate
from sixbit_jax.metrics import mean_interval, paired_interval
from sixbit_jax.policies import (
    Policy,
    attention_density,
    chain,
    fixed,
    skip_fraction,
    sparse_attention,
)
from sixbit_jax.routes import Route
from sixbit_jax.sparsity import Order

MODULE = "benchmarks.quality.sparse"
SHARES = (0.75, 0.5, 0.35, 0.25)
WAYS = ("centroids", "dropped", "radial", "window")
ORDERS: tuple[Order, ...] = ("frames", "morton", "hilbert")
# Of a step of CogVideoX-5b with 8-bit attention on an H200 (493 of 797 ms).
ATTENTION_FRACTION = 0.62
# Of the steps: the first ones decide the composition, in every published setting.
DENSE_STEPS = 0.1


@dataclasses.dataclass(frozen=True)
class Row:
    """One policy.

    Attributes:
        way: of choosing, "dense" for none.
        order: of the tokens.
        share: of the blocks of keys that is asked for.
        skipped: share of the steps that is skipped.
    """

    way: str = "dense"
    order: Order = "frames"
    share: float = 1.0
    skipped: float = 0.0


def rows(
    ways: Sequence[str],
    orders: Sequence[Order],
    shares: Sequence[float],
    attention: float,
) -> Iterator[Row]:
    """All rows of a precision, dense first."""
    yield Row()
    for way, order, share in itertools.product(ways, orders, shares):
        if order == "frames" or way in ("centroids", "dropped"):
            yield Row(way, order, share)
    best = orders[-1] if "centroids" in ways else "frames"
    for share in shares:
        yield Row(skipped=attention * (1 - share))
    if "centroids" not in ways:
        return
    for share in shares:
        # The same time with half of the saving from keys, half from steps.
        saved = attention * (1 - share) / 2
        kept = 1 - saved / attention
        yield Row("centroids", best, kept, saved / (1 - saved))


class Study:
    """Runs of one precision of the weights.

    Args:
        name: of the precision.
        runs: of its network.
        base: policy of every row: the routes.
        blocks: queries of a tile and keys of a block, or None for the kernel's.
        attention: share of a step's time that is attention.
    """

    def __init__(
        self,
        name: str,
        runs: CalibrationRuns,
        base: Policy,
        blocks: tuple[int, int] | None,
        attention: float,
    ) -> None:
        self.name, self.runs, self._base = name, runs, base
        self._blocks, self._attention = blocks, attention

    def _sparse(self, row: Row, **numbers: Any) -> Policy:
        kind = row.way if row.way in ("radial", "window") else "threshold"
        return sparse_attention(
            numbers.pop("tau", 0.0),
            way=kind,
            approximate=row.way != "dropped",
            order=row.order,
            blocks=self._blocks,
            dense_steps=DENSE_STEPS,
            dense_blocks=(),
            **numbers,
        )

    def _mask_numbers(self, row: Row) -> dict[str, Any]:
        """Width or frames of the fixed mask that is nearest to the share."""
        _, frames, height, width = _latent_grid(self.runs)
        text = self.runs.model.config
        rows_, keys = self._blocks or (192, 128)
        tokens = frames * height * width
        first = getattr(text, "max_text_seq_length", 0)
        total = tokens + (first if text.__class__.__name__.startswith("Cog") else 0)
        grid = BlockGrid(total, total, rows_, keys, text=(0, total - tokens))
        steps = DENSE_STEPS
        wanted = max((row.share - steps) / (1 - steps), 0.0)
        make = functools.partial(
            getattr(choose, row.way), 1, 1, grid, tokens_per_frame=height * width
        )
        candidates: list[dict[str, Any]] = (
            [{"frames": n} for n in range(frames)]
            if row.way == "window"
            else [{"width": float(w)} for w in np.geomspace(0.02, 4.0, 24)]
        )
        return min(candidates, key=lambda n: abs(float(make(**n).density()) - wanted))

    def policy(self, row: Row) -> tuple[Policy, dict[str, Any]]:
        """Of a row, with the numbers that were found for it."""
        parts, found = [self._base], {}
        if row.way in ("radial", "window"):
            found = self._mask_numbers(row)
            parts.append(self._sparse(row, **found))
        elif row.way != "dense":

            def record(tau: float):
                sparse = chain(self._base, self._sparse(row, tau=tau))
                return self.runs.sample(sparse, 1).traces

            fit = find_sparse_tau(record, row.share, tolerance=0.01)
            found = {"tau": fit.tau}
            parts.append(self._sparse(row, **found))
        if row.skipped:
            steps, blocks = self.runs.num_steps, self.runs.model.num_blocks
            plan = skip_plan(steps, blocks, row.skipped * steps / (steps - 1), "steps")
            parts.append(fixed(skip=plan)._replace(group=None))
        return chain(*parts), found

    def sampled(self, row: Row) -> tuple[Sampled, dict[str, Any]]:
        """The row's videos."""
        policy, found = self.policy(row)
        return self.runs.sample(policy), found

    def record(
        self, row: Row, sampled: Sampled, reference: np.ndarray, dense: np.ndarray
    ) -> dict[str, Any]:
        """Against dense attention in full precision, and of the same weights.

        Args:
            row: what was asked for.
            sampled: its videos.
            reference: of dense attention in full precision.
            dense: PSNR of dense attention with these weights; not finite: none.
        """
        values = psnr_db(sampled.latents, reference)
        density = np.stack([t.attention_density for t in sampled.traces])
        skip = np.stack([t.skip for t in sampled.traces])
        share, skipped = attention_density(density, skip), skip_fraction(skip)
        seconds = (1 - skipped) * (1 - self._attention + self._attention * share)
        record = {
            "kind": "sparse_quality",
            "weights": self.name,
            **dataclasses.asdict(row),
            "density": share,
            "skip_fraction": skipped,
            "time_over_dense": seconds,
            "videos": len(values),
        }
        # What is compared with itself has no PSNR.
        if np.isfinite(values).all():
            mean = mean_interval(values)
            record |= {"psnr_db": mean.mean, "psnr_ci95": [mean.low, mean.high]}
        if len(values) > 1 and np.isfinite(dense).all() and np.isfinite(values).all():
            change = paired_interval(values, dense)
            record |= {
                "against_dense_db": change.mean,
                "against_dense_ci95": [change.low, change.high],
            }
        return record | {"psnr_of_each_db": [float(v) for v in values]}


def psnr_db(found: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Of the latents of each video, by the range of the reference's."""
    axes = tuple(range(1, found.ndim))
    error = np.square(found.astype(np.float64) - reference).mean(axes)
    span = reference.max(axes) - reference.min(axes)
    with np.errstate(divide="ignore"):
        return 20 * np.log10(span) - 10 * np.log10(error)


def _latent_grid(runs: CalibrationRuns) -> tuple[int, int, int, int]:
    frames, _, height, width = runs.latent_shape
    grid = runs.model.config.token_grid(frames, height, width)
    return int(np.prod(grid)), *grid


def measure(
    studies: Sequence[Study], wanted: Sequence[Row], seconds: float
) -> Iterator[dict[str, Any]]:
    """Records, until the time is over; a row that fails loses only itself."""
    end, reference = time.monotonic() + seconds, None
    for study in studies:
        dense = np.array([np.inf])
        for row in wanted:
            if time.monotonic() > end and reference is not None:
                return
            try:
                sampled, found = study.sampled(row)
            except ValueError as error:
                yield {
                    "kind": "sparse_quality",
                    "weights": study.name,
                    **dataclasses.asdict(row),
                    "failure": str(error),
                }
                continue
            if reference is None:
                reference = sampled.latents
            if row == Row():
                dense = psnr_db(sampled.latents, reference)
            yield study.record(row, sampled, reference, dense) | found


def _numbers(word: str) -> tuple[float, ...]:
    return tuple(float(part) for part in word.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    calibrate.add_arguments(parser)
    study = parser.add_argument_group("study")
    study.add_argument("--shares", type=_numbers, default=SHARES)
    study.add_argument("--ways", default=",".join(WAYS))
    study.add_argument("--orders", default=",".join(ORDERS))
    study.add_argument("--weights", default="full,quantized")
    study.add_argument("--blocks", help="queries x keys, for short videos")
    study.add_argument("--attention-fraction", type=float, default=ATTENTION_FRACTION)
    study.add_argument("--minutes", type=float, default=600.0)
    study.add_argument("--commit", help="recorded where there is no git repository")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(given)
    captions = () if args.captions else _inputs.calibration_prompts(args.prompts)
    prompts = _inputs.read_prompts(args, captions)
    models = _inputs.load_models(args, second_guidance=None)
    blocks = None
    if args.blocks:
        first, second = (int(word) for word in args.blocks.split("x"))
        blocks = first, second
    kinds = {
        "full": (models.plain, chain()),
        "quantized": (models.quantized, fixed(route=Route.INT8)),
    }
    studies = [
        Study(
            name,
            calibrate.runs_of(args, kinds[name][0], prompts, {}),
            kinds[name][1],
            blocks,
            args.attention_fraction,
        )
        for name in args.weights.split(",")
    ]
    wanted = list(
        rows(
            args.ways.split(","),
            args.orders.split(","),
            args.shares,
            args.attention_fraction,
        )
    )
    shown = [Path(word).name if "/" in word else word for word in given]
    header = records.header(["python", "-m", MODULE, *shown], commit_id=args.commit)
    found = []
    for record in measure(studies, wanted, args.minutes * 60):
        found.append(record)
        records.write(Path(args.out), header, found)
        print(line(record), flush=True)


def line(record: dict[str, Any]) -> str:
    """One row for the terminal."""
    names = (
        "weights way order share skipped density skip_fraction time_over_dense "
        "psnr_db against_dense_db tau width frames failure"
    )
    return " ".join(
        f"{name}={record[name]:.4g}"
        if isinstance(record[name], float)
        else f"{name}={record[name]}"
        for name in names.split()
        if name in record
    )


if __name__ == "__main__":
    main()
