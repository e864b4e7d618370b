"""`sixbit tune`: Q-VDiT on a model: trajectories, distillation, packed checkpoint."""

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sixbit_jax import files
from sixbit_jax.commands import _inputs, _numbers, _shared
from sixbit_jax.commands._names import BUNDLED_CHECKPOINT

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
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--captions", nargs="+", metavar="TEXT", help="for the bundled model"
    )
    prompts.add_argument(
        "--prompt-embeds",
        metavar="FILE",
        type=Path,
        help="as in `sixbit sample`; each row is a prompt (needs --model)",
    )
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
        help="a converted checkpoint, or a diffusers directory of the demo's kind "
        "(default: the bundled one)",
    )
    method = parser.add_argument_group("quantization")
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
        type=_numbers.real(0.0),
        default=100.0,
        help="of the relations between frames beside the squared error (100)",
    )
    loop = parser.add_argument_group("tuning")
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
            type=_numbers.real(0.0),
            default=rate,
            help=f"learning rate, {'0 leaves them as they are ' if rate else ''}"
            f"({rate:g})",
        )
    sampling = parser.add_argument_group("trajectories")
    _shared.add_steps_argument(sampling)
    sampling.add_argument(
        "--guidance",
        type=_numbers.real(0.0, 1000.0),
        default=6.0,
        help="scale; 1 runs one branch (6.0)",
    )
    _shared.add_seed_argument(sampling, "of noise and order (0)")
    sampling.add_argument(
        "--scheduler",
        choices=tuple(_shared.SCHEDULERS),
        help="default: the checkpoint's own",
    )
    _shared.add_size_arguments(sampling, "in latents; default: the training size")
    parser.add_argument(
        "--dtype",
        choices=_shared.DTYPES,
        default="auto",
        help="compute dtype; auto: float32 on CPUs, else bfloat16",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    _ask_for_determinism()
    _check(args)
    from sixbit_jax.commands._tuning import check_plain

    prompts = _inputs.read_prompts(args, _captions(args.prompts))
    if prompts.negative is None and args.guidance != 1.0:
        raise ValueError(
            f"--guidance {args.guidance}: expected negative_prompt_embeds in "
            f"{args.prompt_embeds}, found none (--guidance 1 runs without)"
        )
    source = args.model or BUNDLED_CHECKPOINT
    model, header = _inputs.load_plain(source)
    check_plain(model, args)
    args.out.mkdir(exist_ok=True)
    # Inside of the directory: its parent may be closed to us.
    with files.locked(args.out / "run"):
        return _tune(args, model, header, prompts)


def _tune(args: argparse.Namespace, model: Any, header: Any, prompts: Any) -> int:
    from sixbit_jax.commands._tuning import finish, make_session, record

    data = record(args, model, header, prompts)
    session = make_session(args, model, data)
    with _progress(args, session.tuner.options.iterations) as on_progress:
        try:
            state, losses = session.run(data, on_progress=on_progress)
        except FloatingPointError as error:
            raise ValueError(str(error)) from error
    finish(args, model, header, data, session, state, losses)
    first, last = losses["mse"][:20].mean(), losses["mse"][-20:].mean()
    out = files.shown(args.out)
    print(f"{out}: mse {first:.3g} -> {last:.3g}, model in {out}/model")
    return 0


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
    settings_of(args)


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


def _captions(count: int) -> tuple[str, ...]:
    from sixbit_jax.commands.calibrate import calibration_captions

    return calibration_captions(count)


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


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What distinguishes a run, for its checkpoints."""
    from sixbit_jax.methods.q_vdit.method import QVDiTOptions

    options = QVDiTOptions(
        weight_bits=args.weight_bits,
        activation_bits=args.activation_bits,
        scope=args.scope,
        inner_rank=args.inner_rank,
        tmd_weight=args.tmd_weight,
        seed=args.seed,
    )
    rates = {group: getattr(args, f"rate_{group}") for group in RATES}
    if not args.inner_rank:
        del rates["inner"]
    return {"q_vdit": asdict(options), "learning_rates": rates}
