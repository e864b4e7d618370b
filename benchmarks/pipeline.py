"""Prompt to MP4 at real size, with random weights, from a converted directory.

    python -m benchmarks.pipeline --model 5b --out FILE
    python -m benchmarks.pipeline --model wan-1.3b --out FILE

Writes a pipeline directory of random weights (NVFP4 transformer, INT8 text encoder,
bf16 VAE) once, then makes videos from it as `sixbit generate` does: parts one after the
other, each loaded and freed. The first video compiles; the second one's seconds are
recorded, without those of loading, which stand beside them.
"""

import argparse
import contextlib
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sixbit_jax import checkpoint
from sixbit_jax.benchmark import records
from sixbit_jax.benchmark.plans import skip_plan
from sixbit_jax.benchmark.subject import CONFIGS, random_model
from sixbit_jax.pipelines import memory
from sixbit_jax.pipelines.header import PIPELINE_NAME, PipelineHeader
from sixbit_jax.pipelines.pipeline import Stopped, VideoPipeline, load_pipeline
from sixbit_jax.policies import fixed
from sixbit_jax.quantizers.uniform import UniformRecipe
from sixbit_jax.report.video import write_mp4
from sixbit_jax.routes import Route
from sixbit_jax.sampling.options import Execution
from sixbit_jax.text_encoders.t5 import T5Encoder, UMT5Encoder
from sixbit_jax.text_encoders.t5_config import T5Config
from sixbit_jax.vae.cogvideox import AutoencoderKLCogVideoX
from sixbit_jax.vae.wan import AutoencoderKLWan

PACKAGES = (*records.PACKAGES, "jax-cuda13-plugin")
PROMPT = "a red circle moves left through the forest"
# Of the bundled default policy, measured on 64 captions (README).
SKIPS = 0.293


@partial(jax.jit, static_argnames=("shape", "rotation", "quantized", "layers"))
def _leaf(
    key: jax.Array,
    *,
    shape: tuple[int, ...],
    layers: int,
    quantized: bool,
    rotation: int,
) -> Any:
    def draw(key: jax.Array) -> Any:
        if len(shape) < 2:
            return jnp.ones(shape, jnp.bfloat16)
        bound = shape[-1] ** -0.5
        w = jax.random.uniform(key, shape, jnp.float32, -bound, bound)
        if not quantized:
            return w.astype(jnp.bfloat16)
        return UniformRecipe(8, grid="minmax").compress(w, rotation=rotation)

    if not layers:
        return draw(key)
    return jax.lax.map(draw, jax.random.split(key, layers))


def random_component(model: Any, config: Any, *, quantized: bool) -> nnx.Module:
    """A text encoder or a VAE with random weights, INT8 as a recipe has it."""
    graph, state = nnx.split(nnx.eval_shape(lambda: model(config, rngs=nnx.Rngs(0))))
    flat = dict(nnx.to_flat_state(state))
    recipe = UniformRecipe(8)
    for number, (path, variable) in enumerate(list(flat.items())):
        name = ".".join(map(str, path))
        shape = tuple(variable.get_value().shape)
        layers = shape[0] if path[0] in model.stacks else 0
        shape = shape[1:] if layers else shape
        rotation = None
        if quantized:
            rotation = recipe.rotation_of(model.weight_role(name), shape[-1])
        made = _leaf(
            jax.random.key(number),
            shape=shape,
            layers=layers,
            quantized=rotation is not None,
            rotation=rotation or 0,
        )
        flat[path] = variable.replace(made)
    return nnx.merge(graph, nnx.from_flat_state(flat))


def write_pipeline(name: str, folder: Path) -> Path:
    """Writes the pipeline directory of a model with random weights."""
    from tests.golden.tokenizer_cases import unpack

    wan = name.startswith("wan")
    config = CONFIGS[name]
    encoder = UMT5Encoder if wan else T5Encoder
    text = T5Config(vocab_size=256384 if wan else 32128)
    vae = AutoencoderKLWan if wan else AutoencoderKLCogVideoX
    path = folder / name
    path.mkdir()
    parts = {
        "transformer": lambda: random_model(config, quantized=True),
        "text_encoder": lambda: random_component(encoder, text, quantized=True),
        "vae": lambda: random_component(vae, vae.config_class(), quantized=False),
    }
    classes = {}
    for part, make in parts.items():
        model: Any = make()
        stacks = getattr(type(model), "stacks", ())
        chosen = None if part == "transformer" else stacks
        checkpoint.save(model, path / part, stacks=chosen)
        classes[part] = type(model).class_name
    unpack("umt5" if wan else "t5", folder).rename(path / "tokenizer")
    header = PipelineHeader(
        "WanPipeline" if wan else "CogVideoXPipeline", classes, ("tokenizer",)
    )
    (path / PIPELINE_NAME).write_text(header.to_json(), encoding="utf-8")
    return path


def warm_up(pipe: VideoPipeline, **options: Any) -> float:
    """Loads and compiles everything once; seconds."""
    began = time.perf_counter()
    settings = options["settings"]

    def stop(part: str, done: int, count: int) -> bool:
        del count
        return part == "sampling" and done > 0

    with contextlib.suppress(Stopped):
        list(pipe.videos([(PROMPT, 0)], tell=stop, **options))
    zeros = jnp.zeros((1, *settings.latent_shape), jnp.float32)
    pipe.decode(zeros, settings, tiled=options["tiled"])
    return time.perf_counter() - began


def measure(
    pipe: VideoPipeline, skips: float, out: Path, *, tiled: bool = False
) -> dict[str, Any]:
    """Makes a video; what each part took."""
    settings = pipe.settings()
    blocks = pipe.description.num_blocks
    plan = skip_plan(settings.num_steps, blocks, skips, "steps")
    policy = fixed(route=Route.INT8, skip=plan)
    if skips:
        policy = policy._replace(skips=True, group=None)
    options = {
        "settings": settings,
        "policy": policy,
        "execution": Execution(dtype=pipe.dtype, attention="int8"),
        "tiled": tiled,
    }
    compile_s = warm_up(pipe, **options)
    (video,) = pipe.videos([(PROMPT, 1)], **options)
    filed = time.perf_counter()
    written = write_mp4(out, video.frames, fps=settings.fps, scale=1, crf=18)
    parts = dict(video.seconds)
    load = parts.pop("load")
    if written:  # where the extra `video` is installed
        parts["file"] = time.perf_counter() - filed
    return {
        "skip_fraction": float(plan.mean()),
        "steps": settings.num_steps,
        "frames": settings.frames,
        "tiled": tiled,
        "height": settings.height,
        "width": settings.width,
        "part_s": parts,
        "load_s": load,
        "warm_up_s": compile_s,
        "end_to_end_s": sum(parts.values()),
        "peak_bytes": memory.peak_memory(),
        "peak_to_here": "of this process, the records above included",
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=tuple(CONFIGS), default="5b")
    parser.add_argument("--out", type=Path, required=True, help="results file (JSON)")
    parser.add_argument("--dir", type=Path, help="keep the pipeline directory here")
    parser.add_argument("--skips", type=float, nargs="+", default=[0.0, SKIPS])
    parser.add_argument("--tiled", action="store_true", help="decode in tiles")
    parser.add_argument("--commit", help="for machines without the repository")
    args = parser.parse_args()
    command = ["python", "-m", "benchmarks.pipeline", "--model", args.model]
    command += ["--skips", *map(str, args.skips), *(["--tiled"] if args.tiled else [])]
    head = records.header(
        [*command, "--out", args.out.name], packages=PACKAGES, commit_id=args.commit
    )
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.dir or Path(scratch)
        path = folder / args.model
        began = time.perf_counter()
        if not path.is_dir():
            write_pipeline(args.model, folder)
        print(f"directory: {time.perf_counter() - began:.1f} s", flush=True)
        jax.clear_caches()
        pipe = load_pipeline(path)
        for skips in args.skips:
            program = "int8, 8-bit attention" + (", whole steps" if skips else "")
            clip = args.out.with_suffix(".mp4")
            record = measure(pipe, skips, clip, tiled=args.tiled)
            found.append({"model": args.model, "program": program, **record})
            print(json.dumps(found[-1]), flush=True)
            records.write(args.out, head, found)


if __name__ == "__main__":
    main()
