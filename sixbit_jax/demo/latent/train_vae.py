"""`python -m sixbit_jax.demo.latent.train_vae`: trains the video autoencoder."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sixbit_jax.demo import images
from sixbit_jax.demo.latent import loop, render, vae, world
from sixbit_jax.demo.train import results_header


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sixbit_jax.demo.latent.train_vae",
        description="Train the video autoencoder; write weights-*.npy (the average, "
        "bfloat16), train_vae.json and reconstructions.png.",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--seconds", type=float, default=200.0, help="of training")
    parser.add_argument("--steps", type=int, default=10**9, help="at most this many")
    parser.add_argument("--init", type=Path, help="folder of weights to continue from")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--frames", type=int, default=vae.TRAIN_FRAMES)
    parser.add_argument("--size", type=int, default=world.SIZE)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps-per-call", type=int, default=10)
    parser.add_argument("--test-videos", type=int, default=64)
    parser.add_argument("--commit", help="recorded where there is no git repository")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, test and write; see `--help`."""
    options = _parser().parse_args(arguments)
    given = sys.argv[1:] if arguments is None else list(arguments)
    places = {str(p) for p in (options.out, options.init) if p}
    shown = [Path(word).name if word in places else word for word in given]
    command = ["python", "-m", "sixbit_jax.demo.latent.train_vae", *shown]
    header = results_header(command, options.commit)
    model = vae.new(options.seed)
    graph, params = nnx.split(model)
    if options.init is not None:
        params = loop.load_weights(options.init, params)
    settings = loop.Settings(learning_rate=options.learning_rate)
    losses = vae.LossSettings(
        batch=options.batch,
        frames=options.frames,
        size=options.size,
        dtype=options.dtype,
    )
    run = loop.Run(loop.init(params, settings))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    run.records.append(
        {"kind": "training", "parameters": count, **asdict(settings), **asdict(losses)}
    )
    print(json.dumps({**header, **run.records[0]}), flush=True)
    mesh = loop.all_devices()
    steps = loop.make_steps(
        partial(vae.loss, graph, losses),
        settings,
        count=options.steps_per_call,
        seed=options.seed,
        mesh=mesh,
    )
    try:
        loop.run_for(
            run,
            steps,
            None,
            seconds=options.seconds,
            count=options.steps_per_call,
            most=options.steps,
            mesh=mesh,
        )
    finally:
        loop.save_weights(options.out, run.state.average)
        _write(options.out, header, run.records)
    average = jax.tree.map(np.asarray, run.state.average)
    run.records.append(_test(graph, average, options))
    _write(options.out, header, run.records)


def _write(folder: Path, header: dict[str, Any], records: list[dict[str, Any]]) -> None:
    text = json.dumps({**header, "records": records}, indent=1)
    (folder / "train_vae.json").write_text(text + "\n")


def _test(graph: Any, params: Any, options: argparse.Namespace) -> dict[str, Any]:
    """PSNR of whole videos that training has not seen, and the latents' scale."""
    batch = min(8, options.test_videos)
    draw = jax.jit(partial(render.make_videos, size=options.size))
    found, means, shown = [], [], None
    for number in range(options.test_videos // batch):
        key = jax.random.fold_in(jax.random.key(10**6), number)
        rows = world.sample_rows(jax.random.fold_in(key, 1), batch)
        video = draw(key, rows)
        made, mean = vae.reconstruct(graph, params, video, dtype=options.dtype)
        found.append(np.asarray(vae.psnr(made, video)))
        means.append(np.asarray(mean, np.float32))
        if shown is None:
            pairs = jnp.stack([video[:4], made[:4]], 1)
            shown = np.asarray(pairs.reshape(-1, *video.shape[1:]))
    assert shown is not None
    sheet = images.contact_sheet(shown, every=6, scale=1)
    images.write_png(options.out / "reconstructions.png", sheet)
    latents = np.concatenate(means)
    values = np.concatenate(found)
    record = {
        "kind": "test",
        "videos": len(values),
        "psnr_db": round(float(values.mean()), 3),
        "psnr_db_lowest": round(float(values.min()), 3),
        "latent_mean": [round(float(v), 4) for v in latents.mean((0, 1, 2, 3))],
        "latent_std": [round(float(v), 4) for v in latents.std((0, 1, 2, 3))],
        "scaling_factor": round(1 / float(np.sqrt(np.square(latents).mean())), 6),
    }
    print(json.dumps(record), flush=True)
    return record


if __name__ == "__main__":
    main()
