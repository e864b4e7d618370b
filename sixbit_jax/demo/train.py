"""`python -m sixbit_jax.demo.train`: trains a demo model, writes its checkpoint."""

import argparse
import datetime
import json
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sixbit_jax.demo import images
from sixbit_jax.demo.evaluate import Evaluation, evaluate, evaluation_attributes
from sixbit_jax.demo.export import read_checkpoint, write_checkpoint
from sixbit_jax.demo.model import COGVIDEOX, DemoModel
from sixbit_jax.demo.models import MODELS
from sixbit_jax.demo.recipe import (
    Recipe,
    Span,
    TrainState,
    init_state,
    make_train_steps,
)
from sixbit_jax.demo.state_file import load_state, save_state
from sixbit_jax.meshes import devices_for

# Calls of the compiled step before its speed is trusted, the compiling one included.
_CALLS_TO_MEASURE = 6


@dataclass
class Training:
    """A run in progress: the state, the clock and what has been recorded."""

    graph: nnx.GraphDef
    state: TrainState
    recipe: Recipe
    demo: DemoModel = COGVIDEOX
    records: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    compile_seconds: float = 0.0

    def averaged_model(self) -> Any:
        """The network with the averaged weights, as float32."""
        # A copy, on one device: the next step donates the state's own buffers.
        host = jax.tree.map(np.asarray, self.state.average)
        return nnx.merge(self.graph, jax.tree.map(jnp.asarray, host))


def train(
    training: Training,
    *,
    steps: int,
    minutes: float | None = None,
    steps_per_call: int = 20,
    evaluations: int = 0,
    captions: int = 256,
    cosine: tuple[float, float] = (0.0, 1.0),
    devices: Sequence[Any] | None = None,
) -> int:
    """Run training steps until their number or the time limit is reached.

    With a time limit, the speed of the first calls fixes how many steps there will be,
    so that the learning rate's cosine ends when the time does.

    Args:
        training: changed in place: state, records and clock.
        steps: number of steps, rounded up to whole calls.
        minutes: limit of the time spent here, compilation included, evaluations not.
        steps_per_call: steps of one compiled call.
        evaluations: how often to sample and score on the way, at even intervals.
        captions: captions per such evaluation.
        cosine: where on the learning rate's half cosine the run begins and ends.
        devices: batches are split over these; None takes as many as divide the batch.

    Returns:
        The number of steps run.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    run = make_train_steps(
        training.graph,
        training.recipe,
        training.demo.scheduler(),
        steps_per_call,
        devices=devices_for(training.recipe.batch) if devices is None else devices,
    )
    first = int(training.state.step)
    calls = -(-steps // steps_per_call)
    limit = float("inf") if minutes is None else 60 * minutes
    marks: set[int] = set()
    measured: list[float] = []
    done = 0
    while done < calls:
        start = time.perf_counter()
        span = Span(jnp.int32(first), jnp.int32(calls * steps_per_call), cosine)
        training.state, records = run(training.state, span)
        losses = np.asarray(records.loss)
        elapsed = time.perf_counter() - start
        training.seconds += elapsed
        done += 1
        _record_losses(training, losses, np.asarray(records.gradient_norm), elapsed)
        if done == 1:
            training.compile_seconds = elapsed
        else:
            measured.append(elapsed)
        if done == min(_CALLS_TO_MEASURE, calls):
            if measured and minutes is not None:
                left = (limit - training.seconds) * 0.98
                calls = min(calls, done + max(int(left / np.median(measured)), 0))
            every = calls / (evaluations + 1)
            marks = {round(every * (i + 1)) for i in range(evaluations)} - {calls}
            print(f"{calls * steps_per_call} steps planned", flush=True)
        if done in marks:
            report_evaluation(training, captions=captions)
        if training.seconds > limit:
            print(f"time limit of {minutes} minutes reached", flush=True)
            break
    return done * steps_per_call


def report_evaluation(training: Training, *, captions: int = 256) -> Evaluation:
    """Sample with the averaged weights, score, and add a record."""
    start = time.perf_counter()
    result = evaluate(
        training.averaged_model(),
        evaluation_attributes(captions),
        demo=training.demo,
        dtype=jnp.dtype(training.recipe.dtype),
        # The plain definitions: a training run should not depend on the kernels.
        kernels=False,
    )
    record = {
        "kind": "evaluation",
        "step": int(training.state.step),
        "train_seconds": round(training.seconds, 2),
        "evaluation_seconds": round(time.perf_counter() - start, 2),
        "captions": captions,
        "held_out_captions": int(result.held_out.sum()),
        "guidance_scale": training.demo.guidance_scale,
        "num_steps": 50,
        **{name: round(value, 4) for name, value in result.summary().items()},
    }
    training.records.append(record)
    print(json.dumps(record), flush=True)
    return result


def _record_losses(
    training: Training, losses: np.ndarray, norms: np.ndarray, elapsed: float
) -> None:
    step = int(training.state.step)
    record = {
        "kind": "loss",
        "step": step,
        "loss": round(float(losses.mean()), 6),
        "gradient_norm": round(float(norms.mean()), 4),
        "train_seconds": round(training.seconds, 2),
        "videos_per_second": round(len(losses) * training.recipe.batch / elapsed, 1),
    }
    training.records.append(record)
    if (step // len(losses)) % 10 == 0:
        print(json.dumps(record), flush=True)
    if not np.isfinite(losses).all():
        raise FloatingPointError(f"the loss is not finite at step {step}: {losses}")


def results_header(command: Sequence[str], commit: str | None) -> dict[str, Any]:
    """The fields that every results file starts with."""
    if commit is None and shutil.which("git") is None:
        commit = "unknown"
    elif commit is None:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        commit = asked.stdout.strip() or "unknown"
    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "command": shlex.join(command),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "machine": jax.devices()[0].device_kind,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in names},
        },
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sixbit_jax.demo.train",
        description="Train a demo model; write a diffusers checkpoint, train.json "
        "(loss curve, scores) and samples.png to the output directory.",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--model", choices=sorted(MODELS), default=COGVIDEOX.name)
    parser.add_argument("--steps", type=int, default=20_000, help="at most this many")
    parser.add_argument("--minutes", type=float, help="time limit of the training")
    parser.add_argument("--batch", type=int, help="default: the model's recipe")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--dtype", help="bfloat16 or float32")
    parser.add_argument(
        "--evaluations", type=int, default=3, help="before the last one (default 3)"
    )
    parser.add_argument("--captions", type=int, default=256, help="per evaluation")
    parser.add_argument("--steps-per-call", type=int, default=20)
    parser.add_argument(
        "--layers", type=int, help="a smaller network, to try the recipe"
    )
    parser.add_argument(
        "--state",
        type=Path,
        help="continue from this folder if it exists; write weights for the next call",
    )
    parser.add_argument(
        "--cosine",
        nargs=2,
        type=float,
        default=(0.0, 1.0),
        metavar=("FROM", "TO"),
        help="part of the learning rate's cosine, for plans of several calls",
    )
    parser.add_argument(
        "--init", type=Path, help="start from the weights of this diffusers root"
    )
    parser.add_argument("--commit", help="recorded where there is no git repository")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate and write; see `--help`."""
    options = _parser().parse_args(arguments)
    demo = MODELS[options.model]
    chosen = {
        name: getattr(options, name)
        for name in ("batch", "learning_rate", "seed", "dtype")
        if getattr(options, name) is not None
    }
    recipe = replace(demo.recipe, **chosen)
    checkpoint = options.out / "checkpoint"
    if checkpoint.exists():
        raise FileExistsError(f"{checkpoint} exists; expected a new directory")
    overrides = {} if options.layers is None else {"num_layers": options.layers}
    model = demo.new(recipe.seed, overrides)
    if options.init is not None:
        weights = read_checkpoint(options.init, nnx.state(model), demo)
        nnx.update(model, weights)
    graph, state = init_state(model, recipe)
    if options.state is not None and options.state.exists():
        state = load_state(options.state, model, recipe)
    training = Training(graph, state, recipe, demo)
    first = int(state.step)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    given = sys.argv[1:] if arguments is None else arguments
    # Where the files were put says nothing about the run.
    places = {str(p) for p in (options.out, options.state, options.init) if p}
    shown = [Path(word).name if word in places else word for word in given]
    header = results_header(
        ["python", "-m", "sixbit_jax.demo.train", *shown], options.commit
    )
    print(json.dumps({**header, "parameters": parameters}), flush=True)

    steps = train(
        training,
        steps=options.steps,
        minutes=options.minutes,
        steps_per_call=options.steps_per_call,
        evaluations=options.evaluations,
        captions=options.captions,
        cosine=tuple(options.cosine),
    )
    summary = _summary(training, parameters, first, steps)
    # First, so that an evaluation that fails or runs out of time costs nothing else.
    average = training.state.average
    write_checkpoint(average, checkpoint, overrides=overrides, demo=demo)
    if options.state is not None:
        save_state(options.state, training.state)
    _write_report(options.out, header, [summary, *training.records])
    result = report_evaluation(training, captions=options.captions)
    rows = np.linspace(0, options.captions - 1, min(options.captions, 16))
    sheet = images.contact_sheet(result.videos[rows.round().astype(int)])
    images.write_png(options.out / "samples.png", sheet)
    _write_report(options.out, header, [summary, *training.records])
    print(json.dumps(summary), flush=True)


def _summary(
    training: Training, parameters: int, first: int, steps: int
) -> dict[str, Any]:
    calls = [record for record in training.records if record["kind"] == "loss"]
    rates = [call["videos_per_second"] for call in calls[1:] or calls]
    return {
        "kind": "training",
        "model": training.demo.name,
        "parameters": parameters,
        "first_step": first,
        "steps": steps,
        "seconds": round(training.seconds, 2),
        "compile_seconds": round(training.compile_seconds, 2),
        "devices": len(devices_for(training.recipe.batch)),
        "videos_per_second": float(np.median(rates)),
        **asdict(training.recipe),
    }


def _write_report(
    folder: Path, header: dict[str, Any], records: list[dict[str, Any]]
) -> None:
    text = json.dumps({**header, "records": records}, indent=1)
    (folder / "train.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
