"""Prompt to MP4 at real size, with random weights, from a converted directory.

    python -m benchmarks.pipeline --model 5b --out FILE
    python -m benchmarks.pipeline --model wan-14b-i2v --made --steps 40 --out FILE

Writes a pipeline directory of random weights (NVFP4 transformer, INT8 text encoder,
bf16 VAE) once, then makes videos from it as `sixbit generate` does: parts one after the
other, each loaded and freed. With `--made` only headers are written, and weights are
made on the device where they would be loaded. The first video compiles; the seconds of
the ones behind it are recorded, without those of loading, which stand beside them. All
`--skips` share one compiled program: with others than 0 it holds a delta cache, for 0
too. The results file is rewritten after every record.
"""

import argparse
import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks.pipeline.made import CASES, MadePipeline, write_pipeline
from sixbit_jax.benchmark import records
from sixbit_jax.benchmark.plans import skip_plan
from sixbit_jax.pipelines import memory
from sixbit_jax.pipelines.image_to_video import Pictures
from sixbit_jax.pipelines.pipeline import Stopped, VideoPipeline, load_pipeline
from sixbit_jax.policies import Policy, fixed
from sixbit_jax.report.video import write_mp4
from sixbit_jax.routes import Route
from sixbit_jax.sampling.options import Execution

PACKAGES = (*records.PACKAGES, "jax-cuda13-plugin")
PROMPT = "a red circle moves left through the forest"
# Of the bundled default policy, measured on 64 captions (README).
SKIPS = 0.293


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=CASES, default="5b")
    parser.add_argument("--out", type=Path, required=True, help="results file (JSON)")
    parser.add_argument("--dir", type=Path, help="keep the pipeline directory here")
    parser.add_argument(
        "--made", action="store_true", help="weights are made on the device, not loaded"
    )
    parser.add_argument("--skips", type=float, nargs="+", default=[0.0, SKIPS])
    parser.add_argument("--steps", type=int, help="denoising steps (published)")
    parser.add_argument("--guidance", type=float, help="guidance scale (published)")
    parser.add_argument("--shift", type=float, help="of the noise levels (published)")
    parser.add_argument("--tiled", action="store_true", help="decode in tiles")
    parser.add_argument("--commit", help="for machines without the repository")
    return parser.parse_args(argv)


def policy_of(pipe: VideoPipeline, steps: int, skips: float, *, cached: bool) -> Policy:
    """INT8 everywhere, a fraction of the steps skipped.

    Args:
      pipe: the pipeline.
      steps: denoising steps.
      skips: fraction.
      cached: whether the program has a delta cache, whatever it skips.
    """
    plan = skip_plan(steps, pipe.description.num_blocks, skips, "steps")
    policy = fixed(route=Route.INT8, skip=plan)
    return policy._replace(skips=True, group=None) if cached else policy


def pictures_of(pipe: VideoPipeline, settings: Any) -> list[Pictures] | None:
    """A picture of noise for a pipeline that takes one."""
    if pipe.header.pipeline_class != "WanImageToVideoPipeline":
        return None
    shape = (settings.height, settings.width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return [Pictures(Image.fromarray(pixels))]


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
    pipe: VideoPipeline,
    options: dict[str, Any],
    out: Path,
) -> dict[str, Any]:
    """Makes a video; what each part took."""
    settings = options["settings"]
    (video,) = pipe.videos([(PROMPT, 1)], **options)
    filed = time.perf_counter()
    written = write_mp4(out, video.frames, fps=settings.fps, scale=1, crf=18)
    parts = dict(video.seconds)
    load = parts.pop("load")
    if written:  # where the extra `video` is installed
        parts["file"] = time.perf_counter() - filed
    return {
        "steps": settings.num_steps,
        "guidance_scale": settings.guidance_scale,
        "frames": settings.frames,
        "tiled": options["tiled"],
        "height": settings.height,
        "width": settings.width,
        "part_s": parts,
        "load_s": load,
        "end_to_end_s": sum(parts.values()),
        "peak_bytes": memory.peak_memory(),
        "peak_to_here": "of this process, the records above included",
    }


def run(
    args: argparse.Namespace, pipe: VideoPipeline, head: dict[str, Any]
) -> list[dict[str, Any]]:
    """A record for each fraction of skips, written as they come."""
    settings = pipe.settings(num_steps=args.steps, guidance_scale=args.guidance)
    cached = any(args.skips)
    options: dict[str, Any] = {
        "settings": settings,
        "pictures": pictures_of(pipe, settings),
        "execution": Execution(dtype=pipe.dtype, attention="int8"),
        "shift": args.shift,
        "tiled": args.tiled,
    }
    program = "int8, 8-bit attention" + (", whole steps" if cached else "")
    found: list[dict[str, Any]] = []
    warm_up_s = None
    for skips in args.skips:
        policy = policy_of(pipe, settings.num_steps, skips, cached=cached)
        options["policy"] = policy
        if warm_up_s is None:
            warm_up_s = warm_up(pipe, **options)
            print(f"warm up: {warm_up_s:.1f} s", flush=True)
        record = measure(pipe, options, args.out.with_suffix(".mp4"))
        plan = skip_plan(
            settings.num_steps, pipe.description.num_blocks, skips, "steps"
        )
        record = {
            "model": args.model,
            "program": program,
            "weights": "made on the device" if args.made else "loaded",
            "skip_fraction": float(plan.mean()),
            **record,
            "warm_up_s": warm_up_s,
        }
        found.append(record)
        print(json.dumps(record), flush=True)
        records.write(args.out, head, found)
    return found


def command_of(args: argparse.Namespace) -> list[str]:
    """The words of the command line, without places."""
    words = ["python", "-m", "benchmarks.pipeline", "--model", args.model]
    words += ["--skips", *map(str, args.skips)]
    for name in ("steps", "guidance", "shift"):
        given = getattr(args, name)
        words += [] if given is None else [f"--{name}", str(given)]
    words += [f"--{name}" for name in ("made", "tiled") if getattr(args, name)]
    return [*words, "--out", args.out.name]


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    args = parse(argv)
    head = records.header(command_of(args), packages=PACKAGES, commit_id=args.commit)
    case = CASES[args.model]
    with tempfile.TemporaryDirectory() as scratch:
        path = (args.dir or Path(scratch)) / args.model
        began = time.perf_counter()
        if not path.is_dir():
            write_pipeline(case, path, headers_only=args.made)
        print(f"directory: {time.perf_counter() - began:.1f} s", flush=True)
        if not args.made:
            jax.clear_caches()
        pipe = MadePipeline(case, path) if args.made else load_pipeline(path)
        run(args, pipe, head)


if __name__ == "__main__":
    main()
