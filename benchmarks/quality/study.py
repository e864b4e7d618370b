"""Quality of every method on a small trained model, against full precision.

    python -m benchmarks.quality --captions 64 --out quality.json
    python -m benchmarks.quality.wan --captions 64 --out quality_wan.json

The first is the bundled CogVideoX (v-prediction, DDIM), the second a Wan trained on
the same videos (flow matching).

Each caption and seed is sampled by full precision and by every method from the same
noise. Thresholds are tuned on calibration captions, which are not evaluated. Writes
the results file (after every row, so that a run that is cut keeps what it has), a
Markdown table beside it, and with `--arrays` the numbers of every sample, the mean
plans and the calibration recordings.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import sixbit_jax
from benchmarks.quality import report as quality_report
from benchmarks.quality.calibrate import Targets, correlations, record
from benchmarks.quality.methods import Calibrated
from benchmarks.quality.metrics import Measured
from benchmarks.quality.policies import Setting
from benchmarks.quality.rows import COMPARISONS, ROWS, Method, make_method
from benchmarks.quality.runner import (
    Clock,
    SampledTable,
    StudyCommand,
    refuse_unknown,
)
from benchmarks.quality.runs import (
    FULL,
    QUANTIZED,
    RECORD,
    Options,
    Samples,
    Study,
    make_task,
)
from convert import convert
from sixbit_jax.calibration import PolicyFile, save_policy
from sixbit_jax.demo import vocabulary
from sixbit_jax.demo.evaluate import evaluation_attributes
from sixbit_jax.demo.model import COGVIDEOX, LATENT_SHAPE, DemoModel
from sixbit_jax.demo.models import MODELS, demo_of
from sixbit_jax.sampling.schedulers import FlowMatchEuler, Scheduler

BUNDLED = Path(sixbit_jax.__file__).parent / "demo" / "checkpoint"
CALIBRATION_SEED = 1_000_003


def calibration_attributes(count: int, evaluated: np.ndarray) -> np.ndarray:
    """Captions of the training set, evenly spread, none of them evaluated.

    Raises:
      ValueError: there are not that many.
    """
    taken = {tuple(row) for row in evaluated.tolist()}
    free = [r for r in vocabulary.training_combinations() if tuple(r) not in taken]
    if not 1 <= count <= len(free):
        raise ValueError(
            f"calibration captions: expected 1 to {len(free)}, found {count}"
        )
    return np.stack(free)[np.linspace(0, len(free) - 1, count).round().astype(int)]


@dataclass
class Report(SampledTable):
    """What the run has so far; `write` may be called at any time."""

    pairs: Sequence[Sequence[str]] = tuple(COMPARISONS)
    seeds: int = field(kw_only=True)
    calibrated: Calibrated = field(kw_only=True)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, method: Method, draws: list[tuple[Samples, Measured]]) -> None:
        """Adds a row; the plan and videos kept are those of the first draw."""
        study, samples = self.study, draws[0][0]
        cached = samples.trace.skip.any()
        measured = self.add_row(
            method.name,
            method.description,
            method.kind,
            draws,
            seeds=self.seeds,
            network=demo_of(study.model(FULL)).name,
            scheduler=type(study.scheduler).__name__,
            cache_format=method.kind.cache_format,
            cache_bytes=study.cache_bytes(method.kind) if cached else 0,
            **method.numbers,
        )
        name = method.name
        for key, values in measured.values.items():
            self.arrays[f"{name}/{key}"] = values
        trace = samples.trace
        for route, label in enumerate(("nvfp4", "int8", "bf16")):
            share = (trace.route == route) & ~trace.skip[..., None]
            self.arrays[f"{name}/{label}_map"] = np.asarray(share.mean(0), np.float32)
        self.arrays[f"{name}/skip_map"] = np.asarray(trace.skip.mean(0), np.float32)
        pixels = np.clip(samples.latents[:4] * 127.5 + 127.5, 0, 255)
        self.arrays[f"{name}/videos"] = pixels.round().astype(np.uint8)

    def default_policy(self) -> PolicyFile:
        """The recommended default as a policy file.

        Raises:
          ValueError: the row `sixbit` was not run.
        """
        rows = {row["method"]: row for row in self.rows}
        if "sixbit" not in rows:
            raise ValueError("a policy file needs the row 'sixbit', which was not run")
        row, tuned = rows["sixbit"], self.calibrated
        return PolicyFile.for_model(
            self.study.model(FULL),
            predictor=tuned.predictor,
            threshold=row["threshold"],
            tau=row["tau"],
            importance=row["importance"],
            residual=row["residual"],
            final_int8=row["final_int8"],
            together=row["together"],
            shared=row["shared"],
            max_skips=row["max_skips"],
            outlier_ratio=row["outlier_ratio"],
            refresh_int8=row["refresh_int8"],
            calibration={
                "target_bits": tuned.targets.bits,
                "target_skip_fraction": tuned.targets.skips,
                "captions": len(tuned.recording.gamma),
                "steps": self.study.options.num_steps,
                "guidance_scale": self.study.options.guidance_scale,
                "fit": tuned.fit.summary(),
            },
        )

    def records(self) -> list[dict[str, Any]]:
        """All records: rows, paired differences, correlations."""
        related = correlations(self.calibrated.recording, self.study.grid.sites)
        return [*super().records(), *related]

    def write(
        self, out: Path, header: dict[str, Any], arrays: Path | None = None
    ) -> None:
        """Writes the results file, the Markdown table, and the arrays."""
        super().write(out, header)
        if arrays is not None:
            np.savez_compressed(arrays, allow_pickle=False, **self.arrays)


def run(
    model: Any,
    *,
    methods: Sequence[str],
    captions: int,
    seeds: Sequence[int],
    calibration_captions: int,
    options: Options,
    targets: Targets,
    latent_shape: tuple[int, int, int, int] = LATENT_SHAPE,
    scheduler: Scheduler | None = None,
    minutes: float | None = None,
    after_row: Any = None,
) -> Report:
    """Samples and measures; see the module.

    Args:
      model: the network in full precision.
      methods: names of `quality_methods.ROWS`, in order; full precision comes first
        in any case.
      captions, seeds: every caption is sampled with every seed.
      calibration_captions: for errors and the fit; up to 8 of them for searches.
      options: the options of the sampler.
      targets: bits and skips that compared methods meet.
      latent_shape: (F, C, H, W).
      scheduler: instead of the one that the network was trained with.
      minutes: no row is started after this time.
      after_row: called with the report after every row.

    Raises:
      ValueError: an unknown method.
    """
    refuse_unknown(methods, ROWS)
    clock = Clock(minutes)
    log = clock.log
    evaluated = evaluation_attributes(captions)
    task = make_task(evaluated, seeds, latent_shape)
    chosen = calibration_attributes(calibration_captions, evaluated)
    calibration = make_task(chosen, [CALIBRATION_SEED], latent_shape)
    few = np.linspace(0, len(calibration) - 1, min(8, len(calibration)))
    searched = calibration.take(few.round().astype(int).tolist())

    study = Study(model, latent_shape, options, scheduler=scheduler)
    kinds = [FULL, RECORD, QUANTIZED, *(ROWS[name][1] for name in methods)]
    log(f"compiling {len(set(kinds))} programs")
    study.compile(kinds)
    log("recording calibration runs")
    recording = record(study, calibration)
    calibrated = Calibrated(study, recording, searched, targets)
    report = Report(study, task, seeds=len(seeds), calibrated=calibrated)
    report.arrays |= recording.arrays()

    log("full precision")
    method = Method("full_precision", f"{options.dtype} everywhere", FULL, (Setting(),))
    found = report.draws(FULL, method.settings)
    reference = found[0][0]
    report.add(method, found)
    for name in clock.until_over(methods, str):
        method = make_method(name, calibrated)
        log(name)
        report.add(method, report.draws(method.kind, method.settings, reference))
        log(quality_report.one_line(report.rows[-1]))
        if after_row is not None:
            after_row(report)
    return report


def load_model(source: str | None) -> Any:
    """A converted directory, a diffusers directory, or "random" for a dry run.

    "random" is an untrained CogVideoX, "random-wan" an untrained Wan.

    Raises:
      FileNotFoundError: there is no such directory.
    """
    untrained = {f"random-{name}": demo for name, demo in MODELS.items()}
    untrained["random"] = COGVIDEOX
    if source in untrained:
        return random_model(untrained[source])
    path = BUNDLED if source is None else Path(source)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: expected a directory with a converted or a diffusers checkpoint"
        )
    if (path / "sixbit.json").is_file():
        return sixbit_jax.load(path, dtype=jnp.float32)[0]
    with tempfile.TemporaryDirectory() as scratch:
        converted = Path(scratch) / "model"
        convert(path, converted)
        return sixbit_jax.load(converted, dtype=jnp.float32)[0]


def random_model(
    demo: DemoModel = COGVIDEOX, *, seed: int = 0, **overrides: Any
) -> Any:
    """An untrained network whose blocks are not the identity."""
    graph, state = nnx.split(demo.new(seed, overrides))
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [
        leaf + 0.02 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return nnx.merge(graph, jax.tree.unflatten(tree, noisy))


def _parser(command: StudyCommand) -> argparse.ArgumentParser:
    parser = command.parser()
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1, help="per caption")
    parser.add_argument("--calibration-captions", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, help="default: the model's")
    parser.add_argument("--euler", action="store_true", help="flow-match Euler")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--bits", type=float, default=Targets.bits)
    parser.add_argument("--skips", type=float, default=Targets.skips)
    parser.add_argument("--arrays", type=Path, help="also this .npz")
    parser.add_argument("--policy", type=Path, help="also the default's policy file")
    parser.add_argument("--plots", type=Path, help="also PNG files here (matplotlib)")
    return parser


def main(
    arguments: Sequence[str] | None = None,
    *,
    module: str = "benchmarks.quality",
    **defaults: Any,
) -> None:
    """Command line; `defaults` are those of another module with these arguments."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = StudyCommand(module, __doc__)
    parser = _parser(command)
    parser.set_defaults(**defaults)
    args = parser.parse_args(given)
    model = load_model(args.model)
    demo = demo_of(model)
    scheduler = demo.scheduler()
    if args.euler:
        scheduler = FlowMatchEuler(shift=getattr(scheduler, "flow_shift", 1.0))
    guidance = demo.guidance_scale if args.guidance is None else args.guidance
    header = command.header(given, args)
    report = run(
        model,
        methods=args.methods,
        captions=args.captions,
        seeds=range(1, args.seeds + 1),
        calibration_captions=args.calibration_captions,
        options=Options(args.steps, guidance, args.batch, args.dtype),
        targets=Targets(args.bits, args.skips),
        scheduler=scheduler,
        minutes=args.minutes,
        after_row=lambda found: found.write(args.out, header, args.arrays),
    )
    report.write(args.out, header, args.arrays)
    if args.policy is not None:
        save_policy(report.default_policy(), args.policy)
    print(quality_report.markdown(report.records()))
    if args.plots is not None:
        quality_report.plot(report.records(), args.plots)
