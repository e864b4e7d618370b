"""The parts of `sixbit tune`: trajectories, the session, and the packed model."""

import argparse
import hashlib
import sys
from dataclasses import asdict
from typing import Any

import numpy as np

from sixbit_jax import files
from sixbit_jax.checkpoint import foreign, save
from sixbit_jax.commands import _shared
from sixbit_jax.commands.sample import latent_shape
from sixbit_jax.commands.tune import settings_of
from sixbit_jax.methods.q_vdit.method import QVDiTOptions, q_vdit_method
from sixbit_jax.methods.q_vdit.pack import packed_model
from sixbit_jax.methods.q_vdit.tune import prepare, token_layout
from sixbit_jax.sampling.api import is_quantized
from sixbit_jax.tuning.loop import TuneOptions, Tuner, TuneState
from sixbit_jax.tuning.session import (
    Losses,
    Session,
    cached_trajectories,
    plot_losses,
)
from sixbit_jax.tuning.trajectories import Trajectories, record_trajectories


def say(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)


def check_plain(model: Any, args: argparse.Namespace) -> None:
    """Refuses a model whose weights are quantized already."""
    if is_quantized(model):
        raise ValueError(
            f"--model {args.model}: expected plain weights to quantize, found stored "
            "low-bit ones (convert without --weights)"
        )


def record(
    args: argparse.Namespace, model: Any, header: Any, prompts: Any
) -> Trajectories:
    """The teacher's trajectories, from the directory or made now."""
    shape = latent_shape(model, args.frames, args.height, args.width)
    digest = hashlib.sha256(np.ascontiguousarray(prompts.embeds).tobytes())
    note = {
        "latent_shape": list(shape),
        "steps": args.steps,
        "guidance": args.guidance,
        "seed": args.seed,
        "dtype": _shared.compute_dtype(args.dtype).name,
        "scheduler": args.scheduler or "checkpoint",
        "prompts": len(prompts.embeds),
        "prompts_sha256": digest.hexdigest(),
    }

    def make() -> Trajectories:
        say(f"recording {len(prompts.embeds)} runs of {args.steps} steps")
        return record_trajectories(
            model,
            _shared.scheduler_for(header, args.scheduler),
            prompts.embeds,
            None if args.guidance == 1.0 else prompts.negative,
            latent_shape=shape,
            num_steps=args.steps,
            guidance_scale=args.guidance,
            seed=args.seed,
            batch=min(4, len(prompts.embeds)),
            dtype=_shared.compute_dtype(args.dtype),
            after_batch=None
            if args.quiet
            else lambda done: say(f"  {done} of {len(prompts.embeds)}"),
        )

    return cached_trajectories(args.out, note, make)


def make_session(args: argparse.Namespace, model: Any, data: Trajectories) -> Session:
    """The run, ready to start or to go on."""
    settings = settings_of(args)
    options = QVDiTOptions(**settings["q_vdit"])
    dtype = _shared.compute_dtype(args.dtype)
    start, text_rows = prepare(model, data, options, dtype=dtype)
    loop = TuneOptions(
        iterations=args.iterations,
        batch=args.batch,
        seed=args.seed,
        dtype=dtype.name,
        iterations_per_call=min(20, args.checkpoint_every),
    )
    note = {**settings, "loop": asdict(loop)}
    tuner = Tuner(model, q_vdit_method(text_rows=text_rows), loop)
    rates = settings["learning_rates"]
    return Session(args.out, tuner, start, rates, note, args.checkpoint_every)


def finish(
    args: argparse.Namespace,
    model: Any,
    header: Any,
    data: Trajectories,
    session: Session,
    state: TuneState,
    losses: Losses,
) -> None:
    """Writes the packed model and the plot."""
    options = QVDiTOptions(**settings_of(args)["q_vdit"])
    _, text_rows = token_layout(model, data)
    packed = packed_model(
        model, state.trainable, session.start.frozen, options, text_rows=text_rows
    )
    target = args.out / "model"
    with files.replaced_directory(target, foreign=foreign) as made:
        save(
            packed,
            made,
            scheduler=header.scheduler,
            quantization={"method": "q_vdit", **asdict(options)},
            source=header.source,
        )
    with files.replaced_file(args.out / "losses.png") as partial:
        plot_losses(losses, partial)
