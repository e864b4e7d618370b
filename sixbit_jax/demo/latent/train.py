"""`python -m sixbit_jax.demo.latent.train`: trains transformer and text encoder.

Stages, each with its share of the time: captions alone; the first frame of latents
(what there is, and where); the first three; whole videos. A causal autoencoder makes
the first latents of a video from its first frames alone, so that every stage is a part
of the next.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, Key

from sixbit_jax.demo.latent import loop, parts, vae, world
from sixbit_jax.demo.latent.data import (
    CAPTIONS_EACH,
    encode_all,
    make_captions,
    make_encoder,
    shapes_of,
)
from sixbit_jax.demo.latent.vae import make_decoder
from sixbit_jax.demo.recipe import sample_timesteps
from sixbit_jax.demo.train import results_header

# Weight of the question about what every latent pixel shows, against the velocity.
SIGN_WEIGHT = 0.5


@dataclass(frozen=True)
class Stage:
    """A part of the run.

    Attributes:
      name: in the records.
      frames: latent frames of a video.
      batch: videos per step.
      share: of the time for training.
      count: steps per call.
    """

    name: str
    frames: int
    batch: int
    share: float
    count: int


STAGES = (
    Stage("frame", 1, 256, 0.20, 10),
    Stage("beginning", 3, 128, 0.28, 10),
    Stage("video", parts.LATENT_FRAMES, 64, 0.52, 10),
)


def loss(
    graphs: dict[str, Any],
    stage: Stage,
    dtype: str,
    params: Any,
    data: Any,
    key: Key[Array, ""],
) -> tuple[Array, dict[str, Array]]:
    """Velocity of noisy latents, and what every latent pixel shows, of one batch."""
    scheduler, recipe = parts.TRANSFORMER.scheduler(), parts.TRANSFORMER.recipe
    keys = jax.random.split(key, 5)
    chosen = jax.random.randint(keys[0], (stage.batch,), 0, data["rows"].shape[0])
    which = jax.random.randint(keys[1], (stage.batch,), 0, CAPTIONS_EACH)
    ids = data["ids"][chosen, which].astype(jnp.int32)
    dropped = jax.random.bernoulli(keys[2], recipe.caption_dropout, (stage.batch,))
    empty = jnp.zeros(ids.shape[1], jnp.int32).at[0].set(1)
    ids = jnp.where(dropped[:, None], empty, ids)
    clean = data["latents"][chosen, : stage.frames].astype(jnp.float32)
    noise = jax.random.normal(keys[3], clean.shape)
    timestep = sample_timesteps(
        keys[4], replace(recipe, batch=stage.batch), scheduler.num_train_timesteps
    )
    kind = jnp.dtype(dtype)
    cast = jax.tree.map(lambda x: x.astype(kind), params)
    text = parts.encode_text(graphs["text"], cast["text"], ids, dtype=kind)
    made, middle = parts.forward(
        graphs["transformer"],
        cast["transformer"],
        scheduler.add_noise(clean, noise, timestep).astype(kind),
        text,
        timestep,
    )
    target = scheduler.velocity(clean, noise, timestep)
    velocity = jnp.square(made.astype(jnp.float32) - target).mean()
    signs = _signs(data["rows"][chosen], data["cover"][chosen, : stage.frames])
    read = middle.astype(jnp.float32) @ params["heads"]["signs"]
    known = (~dropped)[:, None, None]
    asked = (jnp.square(read - signs) * known).mean()
    named = {"velocity": velocity, "signs": asked}
    named["high_noise"] = _mean_where(
        jnp.square(made.astype(jnp.float32) - target).mean((1, 2, 3, 4)),
        timestep >= 800,
    )
    return velocity + SIGN_WEIGHT * asked, named


def _mean_where(values: Array, chosen: Array) -> Array:
    return (values * chosen).sum() / jnp.maximum(chosen.sum(), 1)


def _signs(rows: Int[Array, "batch 8"], cover: Array) -> Array:
    """What every latent pixel is to say, [batch, tokens, SIGNS]."""
    one = world.from_rows(rows)
    cover = cover.astype(jnp.float32) / 255
    count = len(world.SHAPES), len(world.COLOUR_NAMES)
    kinds = [
        jnp.concatenate(
            [jax.nn.one_hot(shape, count[0]), jax.nn.one_hot(colour, count[1])], -1
        )
        for shape, colour in (
            (one.shape, one.colour),
            (one.other_shape, one.other_colour),
        )
    ]
    flat = cover.reshape(cover.shape[0], -1, 2)
    shown = sum(flat[..., i, None] * kinds[i][:, None] for i in range(2))
    # Factors: most pixels show the wall.
    return jnp.concatenate([2 * shown, 2 * flat], -1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sixbit_jax.demo.latent.train",
        description="Train the transformer and the text encoder on latents; write "
        "weights-*.npy (averages, bfloat16), train.json and samples.png.",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--vae", type=Path, required=True, help="its weights and test")
    parser.add_argument("--seconds", type=float, default=350.0, help="of everything")
    parser.add_argument("--videos", type=int, default=12_288)
    parser.add_argument("--encode-batch", type=int, default=64, help="on each device")
    parser.add_argument("--encode-seconds", type=float, default=90.0, help="at most")
    parser.add_argument("--init", type=Path, help="folder of weights to continue from")
    parser.add_argument(
        "--shares",
        nargs="+",
        metavar="STAGE=SHARE",
        help="of the time: frame, beginning, video (those of STAGES)",
    )
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--scale-batches", type=float, default=1.0)
    parser.add_argument("--count", type=int, default=10, help="steps per call")
    parser.add_argument("--word-steps", type=int, default=1200)
    parser.add_argument("--word-seconds", type=float, default=60.0, help="at most")
    parser.add_argument("--captions", type=int, default=128, help="of the evaluation")
    parser.add_argument("--evaluation-batch", type=int, default=32)
    parser.add_argument("--num-steps", type=int, default=30, help="of its samples")
    parser.add_argument("--commit", help="recorded where there is no git repository")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate and write; see `--help`."""
    start = time.perf_counter()
    options = _parser().parse_args(arguments)
    given = sys.argv[1:] if arguments is None else list(arguments)
    places = {str(p) for p in (options.out, options.init, options.vae) if p}
    shown = [Path(word).name if word in places else word for word in given]
    command = ["python", "-m", "sixbit_jax.demo.latent.train", *shown]
    header = results_header(command, options.commit)
    graphs, params = parts.new_params(options.seed)
    if options.init is not None:
        params = _initial(options.init, params)
    settings = loop.Settings(learning_rate=options.learning_rate)
    run = loop.Run(loop.init(params, settings))
    sizes = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in params.items()}
    run.records.append({"kind": "training", "parameters": sizes, **asdict(settings)})
    print(json.dumps({**header, **run.records[0]}), flush=True)
    vae_graph, like = nnx.split(vae.new())
    vae_params = loop.load_weights(options.vae, like)
    scale = scale_of(options.vae)
    autoencoder = (vae_graph, vae_params, scale)
    try:
        decoder = _train(run, graphs, settings, autoencoder, options, start)
    finally:
        loop.save_weights(options.out, run.state.average)
        _write(options.out, header, run.records)
    # Only here: it needs the sampler and the scorer.
    from sixbit_jax.demo.latent.evaluate import evaluate

    average = jax.tree.map(np.asarray, run.state.average)
    found = evaluate(
        graphs,
        average,
        autoencoder,
        decoder=decoder,
        count=options.captions,
        batch=options.evaluation_batch,
        num_steps=options.num_steps,
        dtype=options.dtype,
        sheet=options.out / "samples.png",
    )
    run.records.append({"kind": "evaluation", **found})
    print(json.dumps(run.records[-1]), flush=True)
    _write(options.out, header, run.records)


def _initial(folder: Path, like: Any) -> Any:
    """Weights to go on from, in 16 or 8 bits."""
    small = folder / "weights-int8.npz"
    if small.exists():
        return loop.load_small(small, like)
    return loop.load_weights(folder, like)


def scale_of(folder: Path) -> float:
    """The scaling factor that the autoencoder's test measured."""
    records = json.loads((folder / "train_vae.json").read_text())["records"]
    (test,) = [record for record in records if record["kind"] == "test"]
    return float(test["scaling_factor"])


class _Programs:
    """All programs of a run, which compile side by side while the first ones run."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        run: loop.Run,
        graphs: dict[str, Any],
        settings: loop.Settings,
        autoencoder: tuple[Any, Any, float],
        options: argparse.Namespace,
        data: dict[str, Any],
    ):
        self.mesh = loop.all_devices()
        self.everywhere = loop.everywhere(self.mesh)
        self.divided = loop.divided(self.mesh)
        self.encoded_together = options.encode_batch * self.mesh.size
        self._graphs, self._settings, self._options = graphs, settings, options
        self._autoencoder, self._data = autoencoder, data
        self._state = _shapes(run.state, self.everywhere)
        self._place = _shapes(jax.ShapeDtypeStruct((2,), jnp.float32), self.everywhere)
        self.words = pool.submit(self._words)
        self.encoder = pool.submit(self._encoder)
        self.stages = [(s, pool.submit(self._stage, s)) for s in _stages(options)]
        self.decoder = pool.submit(self._decoder)

    def _steps(self, function: Any, count: int, seed: int, data: Any) -> Any:
        steps = loop.make_steps(
            function, self._settings, count=count, seed=seed, mesh=self.mesh
        )
        return steps.lower(self._state, _shapes(data, self.divided), self._place)

    def _stage(self, stage: Stage) -> Any:
        function = partial(loss, self._graphs, stage, self._options.dtype)
        seed, data = self._options.seed + 1, shapes_of(self._data)
        return self._steps(function, stage.count, seed, data).compile()

    def _words(self) -> Any:
        function = partial(parts.word_loss, self._graphs["text"], batch=256)
        given = self._options.count, self._options.seed, self._data
        return _quickly(self._steps(function, *given))

    def _encoder(self) -> Any:
        graph, params, scale = self._autoencoder
        shape = (self.encoded_together, *self._data["rows"].shape[1:])
        rows = jax.ShapeDtypeStruct(shape, self._data["rows"].dtype)
        # With algorithms tried: convolutions that were not encoded nothing in minutes.
        return (
            make_encoder(graph, scale, mesh=self.mesh)
            .lower(
                _shapes(params, self.everywhere),
                _shapes(jax.random.key(0), self.everywhere),
                _shapes(rows, self.divided),
            )
            .compile()
        )

    def _decoder(self) -> Any:
        graph, params, scale = self._autoencoder
        shape = (self._options.evaluation_batch, *parts.LATENT_SHAPE)
        latents = jax.ShapeDtypeStruct(shape, jnp.float32)
        decoded = jax.jit(make_decoder(graph, scale, self._options.dtype))
        return decoded.lower(_shapes(params), latents).compile()


def _train(
    run: loop.Run,
    graphs: dict[str, Any],
    settings: loop.Settings,
    autoencoder: tuple[Any, Any, float],
    options: argparse.Namespace,
    start: float,
) -> Any:
    """Data and all stages, their programs compiled side by side; a compiled decoder."""
    data = make_captions(videos=options.videos, seed=options.seed)

    def save(average: Any) -> None:
        loop.save_weights(options.out, average)

    with ThreadPoolExecutor(8) as pool:
        programs = _Programs(pool, run, graphs, settings, autoencoder, options, data)
        if options.word_steps:
            loop.run_for(
                run,
                programs.words.result(),
                jax.device_put(data, programs.divided),
                seconds=options.word_seconds,
                most=options.word_steps,
                count=options.count,
                labels={"stage": "words"},
                mesh=programs.mesh,
            )
            # Moments and average of what is trained next begin anew.
            run.state = loop.init(run.state.params, settings)
        program = programs.encoder.result()
        _tell(run, start, {"kind": "compiled", "program": "encoder"})
        data, different = encode_all(
            program,
            jax.device_put(autoencoder[1], programs.everywhere),
            data,
            batch=programs.encoded_together,
            seed=options.seed,
            seconds=options.encode_seconds,
            split=programs.divided,
        )
        std = round(float(jnp.std(data["latents"].astype(jnp.float32))), 4)
        _tell(run, start, {"kind": "data", "videos": different, "std": std})
        done = 0.0
        for stage, future in programs.stages:
            steps = future.result()
            _tell(run, start, {"kind": "compiled", "program": stage.name})
            left = options.seconds - (time.perf_counter() - start)
            loop.run_for(
                run,
                steps,
                data,
                seconds=max(left * stage.share / (1.0 - done), 0.0),
                count=stage.count,
                span=(done, done + stage.share),
                labels={"stage": stage.name, "batch": stage.batch * programs.mesh.size},
                save=save,
                mesh=programs.mesh,
            )
            save(run.state.average)
            done += stage.share
        return programs.decoder.result()


def _quickly(lowered: Any) -> Any:
    """Compiled without trying algorithms; for programs of seconds, not convolutions."""
    if jax.default_backend() != "gpu":
        return lowered.compile()
    return lowered.compile(compiler_options={"xla_gpu_autotune_level": 0})


def _tell(run: loop.Run, start: float, record: dict[str, Any]) -> None:
    record["seconds"] = round(time.perf_counter() - start, 1)
    run.records.append(record)
    print(json.dumps(record), flush=True)


def _shapes(tree: Any, sharding: Any = None) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def _stages(options: argparse.Namespace) -> list[Stage]:
    """The stages of a run, as its options change them."""
    wanted = {stage.name: stage.share for stage in STAGES}
    if options.shares:
        wanted = {n: float(s) for n, s in (w.split("=") for w in options.shares)}
    total = sum(wanted.values())
    return [
        replace(
            stage,
            batch=max(1, int(stage.batch * options.scale_batches)),
            share=wanted[stage.name] / total,
            count=min(stage.count, options.count),
        )
        for stage in STAGES
        if wanted.get(stage.name)
    ]


def _write(folder: Path, header: dict[str, Any], records: list[dict[str, Any]]) -> None:
    text = json.dumps({**header, "records": records}, indent=1)
    (folder / "train.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
