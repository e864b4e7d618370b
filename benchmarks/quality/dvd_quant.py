"""DVD-Quant on the bundled model, against full precision and its baselines.

    python -m benchmarks.quality.dvd_quant --captions 64 --batch 64 --minutes 6 \
        --out dvd_quant.json

Each caption is sampled by full precision and by every row from the same noise, as in
`benchmarks.quality`. Thresholds (delta-GBS, caches) are tuned on calibration captions,
which are not evaluated, to the target bits and skips. 4-bit grids are multiplied as
INT8, exactly: nothing here is a timing. Writes the results file after every row, so
that a run that is cut keeps what it has, and a Markdown table beside it.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.quality import report as quality_report
from benchmarks.quality.calibrate import Targets, solve, span_of
from benchmarks.quality.dvd_quant_rows import COMPARISONS, FULL, ROWS, Row
from benchmarks.quality.dvd_quant_runs import DvdKind, DvdSetting, DvdStudy
from benchmarks.quality.metrics import Measured
from benchmarks.quality.policies import num_steps
from benchmarks.quality.runner import (
    Clock,
    SampledTable,
    StudyCommand,
    refuse_unknown,
)
from benchmarks.quality.runs import Options, Samples, Task, make_task
from benchmarks.quality.study import (
    CALIBRATION_SEED,
    calibration_attributes,
    load_model,
)
from sixbit_jax.calibration import find_delta
from sixbit_jax.demo.evaluate import evaluation_attributes
from sixbit_jax.demo.model import LATENT_SHAPE


class Tuner:
    """Settings of rows; calibrates on first need.

    Args:
      study: programs.
      task: calibration captions.
      targets: bits and skips.
    """

    def __init__(self, study: DvdStudy, task: Task, targets: Targets):
        self.study, self.task, self.targets = study, task, targets
        self._found: dict[Any, float] = {}
        trace = study.run(FULL, [DvdSetting()], task).trace
        self.output_change = np.asarray(trace.output_change, np.float64)
        self.delta_change = np.asarray(trace.delta_change, np.float64)
        steps = self.output_change.shape[-1]
        # The first two steps are wide in any case: very short runs stay above.
        least = 8 - 4 * max(steps - 2, 0) / steps
        self.bits = max(targets.bits, least)
        self.start = find_delta(self.output_change, self.bits)

    def _solve(
        self,
        key: Any,
        kind: DvdKind,
        setting_of: Callable[[float], DvdSetting],
        quantity: str,
        target: float,
        span: tuple[float, float],
    ) -> float:
        if key not in self._found:
            points = self.targets.points
            self._found[key] = solve(
                self.study,
                kind,
                self.task,
                setting_of,
                quantity,
                target,
                span,
                points=points,
            ).value
        return self._found[key]

    def delta(self, row: Row) -> float:
        """delta-GBS's threshold for the target bits in the closed loop."""
        pair = {"low": row.low, "high": row.high}
        kind = row.kind
        base = DvdSetting(**pair)  # pyrefly: ignore[bad-argument-type]
        return self._solve(
            (kind, row.low, row.high),
            kind,
            lambda x: replace(base, delta=x),
            "activation_bits",
            self.bits,
            # Switching itself changes the output: the closed loop needs a larger one.
            (self.start.delta, self.start.delta * 16),
        )

    def settings(self, row: Row) -> tuple[DvdSetting, ...]:
        """One setting, or several draws."""
        steps = num_steps(self.study.grid)
        base = DvdSetting(low=row.low, high=row.high)
        shape = (steps, 1, 1)
        early = (np.arange(steps) < steps // 2).reshape(shape)
        odd = (np.arange(steps) % 2 == 1).reshape(shape)
        match row.schedule:
            case "bf16":
                found = (DvdSetting(),)
            case "low":
                found = (replace(base, route=row.low),)
            case "high":
                found = (replace(base, route=row.high),)
            case "delta":
                delta = self.delta(replace(row, kind=replace(row.kind, cached=False)))
                found = (replace(base, delta=delta),)
            case "low_high":
                found = (replace(base, route=np.where(early, row.low, row.high)),)
            case "high_low":
                found = (replace(base, route=np.where(early, row.high, row.low)),)
            case "alternate":
                found = (replace(base, route=np.where(odd, row.low, row.high)),)
            case "random":
                draws = [
                    np.random.default_rng(seed).permutation(early) for seed in (0, 1)
                ]
                found = tuple(
                    replace(base, route=np.where(draw, row.low, row.high))
                    for draw in draws
                )
        return tuple(self._cached(row, setting) for setting in found)

    def _cached(self, row: Row, setting: DvdSetting) -> DvdSetting:
        if row.cache is None:
            return setting
        if row.cache == "step":
            span = span_of(self.output_change, low=0.5, high=5.0)
        else:
            span = span_of(self.delta_change, low=0.9, high=3.0)

        def with_number(x: float) -> DvdSetting:
            if row.cache == "step":
                return replace(setting, step_cache=x)
            return replace(setting, tau=x)

        value = self._solve(
            (row.cache, row.schedule),
            row.kind,
            with_number,
            "skip_fraction",
            self.targets.skips,
            span,
        )
        return with_number(value)


@dataclass
class Table(SampledTable):
    """What the run has so far."""

    pairs: Sequence[Sequence[str]] = tuple(COMPARISONS)

    def add(
        self,
        name: str,
        row: Row,
        setting: DvdSetting,
        draws: Sequence[tuple[Samples, Measured]],
    ) -> None:
        """Adds a row, the mean of its draws."""
        self.add_row(
            name,
            row.description,
            row.kind,
            draws,
            weights=row.kind.weights,
            arq_block=row.kind.arq_block,
            delta=setting.delta,
            step_cache_threshold=setting.step_cache,
            tau=setting.tau,
        )


def run(
    model: Any,
    *,
    methods: Sequence[str],
    captions: int,
    calibration_captions: int,
    options: Options,
    targets: Targets,
    latent_shape: tuple[int, int, int, int] = LATENT_SHAPE,
    minutes: float | None = None,
    after_row: Callable[[Table], None] | None = None,
) -> Table:
    """Samples and measures; see the module.

    Args:
      model: the network in full precision.
      methods: names of `ROWS`, in order; full precision comes first in any case.
      captions: evaluated, one seed each.
      calibration_captions: for thresholds and SmoothQuant's maxima.
      options: the options of the sampler.
      targets: average bits of delta-GBS, skips of the caches.
      latent_shape: (F, C, H, W).
      minutes: no row is started after this time.
      after_row: called with the table after every row.

    Raises:
      ValueError: an unknown method.
    """
    refuse_unknown(methods, ROWS)
    clock = Clock(minutes)
    log = clock.log
    evaluated = evaluation_attributes(captions)
    task = make_task(evaluated, [1], latent_shape)
    chosen = calibration_attributes(calibration_captions, evaluated)
    calibration = make_task(chosen, [CALIBRATION_SEED], latent_shape)
    study = DvdStudy(model, latent_shape, options, calibration)
    log("quantizing and compiling")
    study.compile([FULL, *(ROWS[name].kind for name in methods)])
    log("full precision")
    table = Table(study, task)
    full = Row(f"{options.dtype} everywhere", FULL, "bf16")
    found = table.draws(FULL, [DvdSetting()])
    reference = found[0][0]
    table.add("full_precision", full, DvdSetting(), found)
    tuner = Tuner(study, calibration, targets)
    log(f"open-loop delta for {tuner.bits:.2f} bits: {tuner.start}")
    for name in clock.until_over(methods, str):
        row = ROWS[name]
        settings = tuner.settings(row)
        table.add(name, row, settings[0], table.draws(row.kind, settings, reference))
        log(f"{name}\n{quality_report.one_line(table.rows[-1])}")
        if after_row is not None:
            after_row(table)
    return table


COMMAND = StudyCommand("benchmarks.quality.dvd_quant", __doc__)


def _parser() -> argparse.ArgumentParser:
    parser = COMMAND.parser()
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--calibration-captions", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=6.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--bits", type=float, default=6.0, help="of delta-GBS")
    parser.add_argument("--skips", type=float, default=0.3, help="of the caches")
    parser.add_argument("--points", type=int, default=8, help="per grid of a search")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(given)
    header = COMMAND.header(given, args)
    table = run(
        load_model(args.model),
        methods=args.methods,
        captions=args.captions,
        calibration_captions=args.calibration_captions,
        options=Options(args.steps, args.guidance, args.batch, args.dtype),
        targets=Targets(args.bits, args.skips, points=args.points),
        minutes=args.minutes,
        after_row=lambda found: found.write(args.out, header),
    )
    table.write(args.out, header)
    print(quality_report.markdown(table.records()))


if __name__ == "__main__":
    main()
