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
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int, Key

from sixbit_jax.demo.latent import captions, loop, parts, render, tokens, vae, world
from sixbit_jax.demo.latent.vae import make_decoder
from sixbit_jax.demo.recipe import sample_timesteps
from sixbit_jax.demo.train import results_header

CAPTIONS_EACH = 4
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


def covered(scene: render.Scene, attributes: world.Attributes) -> Array:
    """How much of every latent pixel each object covers, uint8 [b, f, h, w, 2].

    Args:
      scene: of whole videos.
      attributes: of them.
    """
    # The middle of the frames that a latent frame stands for.
    times = np.maximum(4 * np.arange(parts.LATENT_FRAMES) - 2, 0)
    side = 2 * parts.LATENT
    grid = (jnp.arange(side) + 0.5) * (world.SIZE / side) - world.SIZE / 2
    camera = scene.camera[:, times]
    x = grid[None, None, None, :] / camera[..., 1, None, None]
    x = x + camera[..., 0, None, None]
    y = grid[None, None, :, None] / camera[..., 1, None, None]
    maps = []
    for index, shape in enumerate((attributes.shape, attributes.other_shape)):
        centre, radius = scene.centre[:, times, index], scene.radius[:, times, index]
        u = (x - centre[..., 0, None, None]) / radius[..., None, None]
        v = (y - centre[..., 1, None, None]) / radius[..., None, None]
        kinds = [render.distance(kind, u, v) for kind in range(len(world.SHAPES))]
        chosen = [(shape == i)[:, None, None, None] for i in range(len(kinds))]
        inside = jax.nn.sigmoid(-6 * jnp.select(chosen, kinds))
        b, f = inside.shape[:2]
        halves = inside.reshape(b, f, parts.LATENT, 2, parts.LATENT, 2)
        maps.append(halves.mean((3, 5)))
    return jnp.round(255 * jnp.stack(maps, -1)).astype(jnp.uint8)


def make_captions(*, videos: int, seed: int) -> dict[str, Any]:
    """Attribute vectors and token ids of their captions; none is held out."""
    generator = np.random.default_rng(seed)
    known = world.combinations()
    known = known[~world.is_held_out(known)]
    rows = known[generator.integers(len(known), size=videos)]
    texts = captions.captions(np.repeat(rows, CAPTIONS_EACH, axis=0), seed=seed)
    ids = tokens.encode(texts).reshape(videos, CAPTIONS_EACH, -1)
    return {"rows": jnp.asarray(rows), "ids": jnp.asarray(ids.astype(np.uint8))}


def make_encoder(graph: Any, scale: float, *, batch: int, mesh: Mesh) -> Any:
    """`(params, key, rows) -> (latents, cover)` of rendered videos, jitted.

    Args:
      graph: of the autoencoder.
      scale: factor of its latents for the transformer.
      batch: encoded at a time, on each device.
      mesh: rows and results are split over its devices.
    """

    def encoded(params: Any, key: Key[Array, ""], rows: Array) -> tuple[Array, Array]:
        kind = jnp.bfloat16
        model = nnx.merge(graph, jax.tree.map(lambda x: x.astype(kind), params))
        key = jax.random.fold_in(key, jax.lax.axis_index("data"))
        count = rows.shape[0] // batch

        def some(given: tuple[Array, Array]) -> tuple[Array, Array]:
            number, part = given
            attributes = world.from_rows(part)
            scene = render.sample_scenes(jax.random.fold_in(key, number), attributes)
            video = render.render(attributes, scene)
            mean, _ = vae.encode(model, video.astype(kind))
            latents = jnp.moveaxis(scale * mean, -1, 2).astype(kind)
            return latents, covered(scene, attributes)

        parts_of = rows.reshape(count, batch, -1)
        found = jax.lax.map(some, (jnp.arange(count), parts_of))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)

    split = jax.shard_map(
        encoded,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec("data"),
        check_vma=False,
    )
    return jax.jit(split)


def shapes_of(data: dict[str, Any]) -> dict[str, Any]:
    """Shapes of the captions' arrays and of the latents that will join them."""
    count, (frames, channels, height, width) = len(data["rows"]), parts.LATENT_SHAPE
    full = dict(data)
    full["latents"] = jax.ShapeDtypeStruct(
        (count, frames, channels, height, width), jnp.bfloat16
    )
    full["cover"] = jax.ShapeDtypeStruct((count, frames, height, width, 2), jnp.uint8)
    return full


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
    parser.add_argument("--encode-batch", type=int, default=64)
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


def _train(
    run: loop.Run,
    graphs: dict[str, Any],
    settings: loop.Settings,
    autoencoder: tuple[Any, Any, float],
    options: argparse.Namespace,
    start: float,
) -> Any:
    """Data and all stages, their programs compiled side by side; a compiled decoder."""
    vae_graph, vae_params, scale = autoencoder
    mesh = loop.all_devices()
    everywhere, divided = loop.everywhere(mesh), loop.divided(mesh)
    stages = _stages(options)
    data = make_captions(videos=options.videos, seed=options.seed)
    state, place = (
        _shapes(tree, everywhere)
        for tree in (run.state, jax.ShapeDtypeStruct((2,), jnp.float32))
    )

    def steps_of(function: Any, count: int, seed: int) -> Any:
        return loop.make_steps(function, settings, count=count, seed=seed, mesh=mesh)

    def stage_program(stage: Stage) -> Any:
        function = partial(loss, graphs, stage, options.dtype)
        steps = steps_of(function, stage.count, options.seed + 1)
        return steps.lower(state, _shapes(shapes_of(data), divided), place).compile()

    def words_program() -> Any:
        function = partial(parts.word_loss, graphs["text"], batch=256)
        steps = steps_of(function, options.count, options.seed)
        return _quickly(steps.lower(state, _shapes(data, divided), place))

    def encoder_program() -> Any:
        batch = options.encode_batch
        encoded = make_encoder(vae_graph, scale, batch=batch, mesh=mesh)
        given = (
            _shapes(vae_params, everywhere),
            _shapes(jax.random.key(0), everywhere),
        )
        return _quickly(encoded.lower(*given, _shapes(data["rows"], divided)))

    def decoder_program() -> Any:
        shape = (options.evaluation_batch, *parts.LATENT_SHAPE)
        latents = jax.ShapeDtypeStruct(shape, jnp.float32)
        decoded = jax.jit(make_decoder(vae_graph, scale, options.dtype))
        return _quickly(decoded.lower(_shapes(vae_params), latents))

    def save(average: Any) -> None:
        loop.save_weights(options.out, average)

    with ThreadPoolExecutor(8) as pool:
        words = pool.submit(words_program)
        encoder = pool.submit(encoder_program)
        waiting = [pool.submit(stage_program, stage) for stage in stages]
        decoder = pool.submit(decoder_program)
        data = jax.device_put(data, divided)
        if options.word_steps:
            loop.run_for(
                run,
                words.result(),
                data,
                seconds=options.word_seconds,
                most=options.word_steps,
                count=options.count,
                labels={"stage": "words"},
                mesh=mesh,
            )
            # Moments and average of what is trained next begin anew.
            run.state = loop.init(run.state.params, settings)
        program = encoder.result()
        _tell(run, start, {"kind": "compiled", "program": "encoder"})
        given = jax.device_put((vae_params, jax.random.key(options.seed)), everywhere)
        latents, cover = jax.block_until_ready(program(*given, data["rows"]))
        data |= {"latents": latents, "cover": cover}
        std = round(float(jnp.std(latents.astype(jnp.float32))), 4)
        _tell(run, start, {"kind": "data", "videos": options.videos, "std": std})
        done = 0.0
        for stage, future in zip(stages, waiting, strict=True):
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
                labels={"stage": stage.name, "batch": stage.batch * mesh.size},
                save=save,
                mesh=mesh,
            )
            save(run.state.average)
            done += stage.share
        return decoder.result()


def _quickly(lowered: Any) -> Any:
    """Compiled without trying algorithms, which takes longer than it would save."""
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
