"""`sixbit tune`: Q-VDiT on a model: trajectories, distillation, packed checkpoint."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from sixbit_jax import files
from sixbit_jax.commands import _inputs, _numbers, _shared
from sixbit_jax.commands._names import BUNDLED_CHECKPOINT
from sixbit_jax.commands._networks import Network
from sixbit_jax.commands._settings import asked_size, settings_for

DESCRIPTION = """\
Quantizes a model to 3-8 bit weights and tunes what is left to tune (Q-VDiT): records
its own sampling runs in full precision, then distils them into the quantized network,
whose step sizes, rank-one estimators and frame factors are trained. The directory

  trajectories  what the teacher read and predicted
  checkpoints   the newest states; the same command goes on from them, to the same bits
  losses.npz    loss and gradient norms of every iteration; losses.png draws them
  model         the tuned model, packed: for `sixbit sample`, with --policy of its own

is made, or continued where it is. Batches are split over all devices.
"""
EPILOG = """\
examples:
  sixbit tune --out tuned --weight-bits 4 --iterations 2000
  sixbit tune --model cogvideox-2b --prompt-embeds prompts.safetensors --out tuned \\
      --weight-bits 4 --scope attention --inner-rank 32 --dtype bfloat16
"""
# As in `methods.q_vdit.tune`, which imports JAX.
RATES = {"step_sizes": 1e-4, "estimator": 3e-3, "factors": 1e-3, "inner": 1e-3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="made or continued"
    )
    _inputs.add_prompt_arguments(parser)
    parser.add_argument(
        "--prompts",
        metavar="N",
        type=_numbers.whole(1, _numbers.MAX_COUNT),
        default=8,
        help="how many captions of the bundled model's training set to sample, where "
        "none are given (8)",
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        type=Path,
        help="a converted checkpoint, or a diffusers directory (default: the bundled "
        "one)",
    )
    _add_quantization(parser.add_argument_group("quantization"))
    _add_loop(parser.add_argument_group("tuning"))
    sampling = parser.add_argument_group("trajectories")
    _shared.add_schedule_arguments(sampling)
    _shared.add_seed_argument(sampling, "of noise and order (0)")
    _shared.add_size_arguments(sampling, "in latents; default: the training size")
    _shared.add_dtype_argument(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_quantization(method: Any) -> None:
    method.add_argument(
        "--weight-bits", type=_numbers.whole(1, 16), default=4, help="3 to 8 (4)"
    )
    method.add_argument(
        "--activation-bits",
        type=_numbers.whole(1, 16),
        default=6,
        help="that the frame factors start from and `model` is meant for (6)",
    )
    method.add_argument(
        "--scope",
        choices=("all", "attention"),
        default="all",
        help="attention: feed-forward linears stay at 8 bits (all)",
    )
    method.add_argument(
        "--inner-rank",
        type=_numbers.whole(0, _numbers.MAX_SIDE),
        default=0,
        help="of an adapter inside the weight quantizer; 0: none (0)",
    )
    method.add_argument(
        "--tmd-weight",
        type=_numbers.real(0.0, _numbers.MAX_RATIO),
        default=100.0,
        help="of the relations between frames beside the squared error (100)",
    )


def _add_loop(loop: Any) -> None:
    count = _numbers.whole(1, _numbers.MAX_COUNT)
    loop.add_argument("--iterations", type=count, default=2000, help="(2000)")
    loop.add_argument("--batch", type=count, default=4, help="examples each (4)")
    loop.add_argument(
        "--checkpoint-every", metavar="N", type=count, default=200, help="(200)"
    )
    for group, rate in RATES.items():
        loop.add_argument(
            f"--rate-{group.replace('_', '-')}",
            metavar="R",
            type=_numbers.real(0.0, _numbers.MAX_RATE),
            default=rate,
            help=f"learning rate, {'0 leaves them as they are ' if rate else ''}"
            f"({rate:g})",
        )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    _ask_for_determinism()
    _check(args)
    asked = _run_of(args)
    captions = () if args.captions else _inputs.calibration_prompts(args.prompts)
    prompts = _inputs.read_prompts(args, captions)
    network = _inputs.load_plain(args.model or BUNDLED_CHECKPOINT)
    _check_network(args, network)
    teacher = _teacher(args, network, prompts)
    args.out.mkdir(exist_ok=True)
    # Inside of the directory: its parent may be closed to us.
    with files.locked(args.out / "run"):
        return _tune(args, asked, network, prompts, teacher)


def _check_network(args: argparse.Namespace, network: Network) -> None:
    """Refuses what cannot be tuned."""
    from sixbit_jax.sampling.api import is_quantized

    if network.low_noise is not None:
        raise ValueError(
            f"--model {args.model}: expected one network, found a pair: trajectories "
            "of two networks are not distilled (each lies in a directory of its own)"
        )
    if is_quantized(network.model):
        raise ValueError(
            f"--model {args.model}: expected plain weights to quantize, found stored "
            "low-bit ones (convert without --weights)"
        )


def _teacher(
    args: argparse.Namespace, network: Network, prompts: _inputs.Prompts
) -> Any:
    """How trajectories are recorded."""
    from sixbit_jax.tuning.teacher import TeacherRuns
    from sixbit_jax.tuning.trajectories import check_network

    check_network(network.model)
    chosen = settings_for(
        args,
        network,
        size=asked_size(args),
        captions=prompts.captions,
        as_given=args.as_given,
    )
    if prompts.negative is None and chosen.guided:
        raise ValueError(
            f"--guidance {chosen.scale:g}: expected negative_prompt_embeds in "
            f"{args.prompt_embeds}, found none (--guidance 1 runs without)"
        )
    name = args.scheduler or "checkpoint"
    padded = network.model.description.conditions.prompt.rule == "zeros"
    return TeacherRuns(
        chosen.scheduler,
        name if args.shift is None else f"{name}, shift {args.shift:g}",
        latent_shape=chosen.latent_shape,
        num_steps=chosen.num_steps,
        guidance_scale=chosen.scale,
        seed=args.seed,
        dtype=_shared.compute_dtype(args.dtype).name,
        # Said in the directory, and only of networks whose prompts are padded.
        as_given=chosen.as_given and padded,
    )


def _tune(
    args: argparse.Namespace,
    asked: Any,
    network: Network,
    prompts: _inputs.Prompts,
    teacher: Any,
) -> int:
    count = len(prompts.embeds)
    data = teacher.record(
        args.out,
        network.model,
        prompts.embeds,
        prompts.negative,
        say=_say,
        after_batch=None if args.quiet else lambda done: _say(f"  {done} of {count}"),
    )
    session = asked.session(args.out, network.model, data)
    with _progress(args, session.tuner.options.iterations) as on_progress:
        try:
            state, losses = session.run(data, on_progress=on_progress)
        except FloatingPointError as error:
            raise ValueError(str(error)) from error
    asked.write(session, network.model, network.header, data, state, losses)
    first, last = losses["mse"][:20].mean(), losses["mse"][-20:].mean()
    out = files.shown(args.out)
    print(f"{out}: mse {first:.3g} -> {last:.3g}, model in {out}/model")
    return 0


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _ask_for_determinism() -> None:
    """Otherwise the same run on a GPU gives other losses each time.

    XLA reads it when JAX first computes, so it covers the trajectories as well.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_deterministic_ops" not in given:
        os.environ["XLA_FLAGS"] = f"{given} --xla_gpu_deterministic_ops=true".strip()


def _check(args: argparse.Namespace) -> None:
    problems = []
    parent = args.out.absolute().parent
    if not parent.is_dir():
        problems.append(f"--out: expected a directory in which to make it, no {parent}")
    if args.out.exists() and not args.out.is_dir():
        problems.append(f"--out: expected a directory, found a file {args.out}")
    problems += _foreign(args.out)
    if problems:
        raise ValueError("\n  ".join(problems))


def _foreign(out: Path) -> list[str]:
    """Refuses a directory that no earlier run has made, and a model of another's."""
    from sixbit_jax.checkpoint import foreign

    if not out.is_dir():
        return []
    names = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
    if names and "trajectories" not in names:
        return [
            f"--out: expected a new directory or that of an earlier run, found {out} "
            f"with {', '.join(names[:8])}"
        ]
    model = out / "model"
    if not model.exists() and not model.is_symlink():
        return []
    try:
        found = foreign(model)
    except ValueError as error:
        return [f"--out: expected the model of an earlier run in {model}: {error}"]
    if not found:
        return []
    return [
        f"--out: expected only what an earlier run wrote in {model}, which this one "
        f"replaces, found {', '.join(found[:8])}"
    ]


def _progress(args: argparse.Namespace, total: int) -> Any:
    """A context that yields (iterations, losses) -> None, with a bar or without."""
    from contextlib import contextmanager, nullcontext

    if args.quiet:
        return nullcontext()

    @contextmanager
    def shown():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("tuning"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("tuning", total=total, loss="-")

            def on_progress(done: int, losses: dict) -> None:
                loss = f"{losses['loss'][-20:].mean():.4g}"
                progress.update(task, completed=done, loss=loss)

            yield on_progress

    return shown()


def _run_of(args: argparse.Namespace) -> Any:
    """The run of the options."""
    from sixbit_jax.methods.q_vdit.method import QVDiTOptions
    from sixbit_jax.methods.q_vdit.run import QVDiTRun
    from sixbit_jax.tuning.loop import TuneOptions

    options = QVDiTOptions(
        weight_bits=args.weight_bits,
        activation_bits=args.activation_bits,
        scope=args.scope,
        inner_rank=args.inner_rank,
        tmd_weight=args.tmd_weight,
        seed=args.seed,
    )
    rates = {group: vars(args)[f"rate_{group}"] for group in RATES}
    if not args.inner_rank:
        del rates["inner"]
    loop = TuneOptions(
        iterations=args.iterations,
        batch=args.batch,
        seed=args.seed,
        dtype=_shared.compute_dtype(args.dtype).name,
        iterations_per_call=min(20, args.checkpoint_every),
    )
    return QVDiTRun(options, loop, rates, args.checkpoint_every)
