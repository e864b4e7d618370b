"""`sixbit generate`: prompts (and pictures) in, video files out."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sixbit_jax.commands import (
    _compile_cache,
    _mesh,
    _names,
    _numbers,
    _pictures,
    _shared,
)

DESCRIPTION = """\
Makes videos from prompts with a pipeline that `sixbit convert` made of a whole
diffusers root (text encoder, transformer, VAE): tokens, embeddings, denoising in one
compiled program, decoding as a stream, MP4. No PyTorch, nothing is downloaded.

Size, frames, steps, guidance and the shift of the noise are those of the published
pipeline unless they are given; a video that begins with a picture has its proportions
where the published pipeline lets it. What made a video is in the metadata of the MP4
and in a JSON file beside it. Several prompts or seeds go into a folder; videos that are
there already are not made again.
"""
EPILOG = """\
examples:
  sixbit convert CogVideoX-5b cogvideox-5b --weights nvfp4
  sixbit generate cogvideox-5b --prompt "a red fox runs through snow" --out fox.mp4
  sixbit generate wan-1.3b --prompts prompts.txt --videos 2 --out clips/ \\
      --size 832x480 --frames 81 --policy policy.json --attention int8
  sixbit generate wan-i2v --image fox.jpg --prompt "the fox runs" --out fox.mp4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "model",
        metavar="PIPELINE_DIR",
        type=Path,
        help="made by `sixbit convert` from a diffusers root",
    )
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", metavar="TEXT", help="what to show")
    prompts.add_argument(
        "--prompts", metavar="FILE", type=Path, help="text file, a prompt per line"
    )
    parser.add_argument(
        "--negative-prompt",
        metavar="TEXT",
        default="",
        help="what not to show (none)",
    )
    parser.add_argument(
        "--out",
        metavar="FILE.mp4|FILE.gif|DIR",
        type=Path,
        required=True,
        help="file to write, or a folder, which is made",
    )
    parser.add_argument(
        "--videos",
        metavar="N",
        type=_numbers.whole(1, _numbers.MAX_COUNT),
        default=1,
        help="videos per prompt, with seeds that follow each other (1)",
    )
    _add_size(parser.add_argument_group("video (default: as published)"))
    _pictures.add_arguments(parser.add_argument_group("pictures"), _size)
    _add_sampling(parser.add_argument_group("sampling"))
    _add_method(parser.add_argument_group("method"))
    _mesh.add_arguments(parser.add_argument_group("several devices"))
    parser.add_argument("--quiet", action="store_true", help="no progress display")
    _compile_cache.add_cache_argument(parser)


def _add_size(group: Any) -> None:
    group.add_argument(
        "--size", metavar="WIDTHxHEIGHT", type=_size, help="in pixels, as 720x480"
    )
    group.add_argument(
        "--frames", type=_numbers.whole(1, _numbers.MAX_FRAMES), help="of the video"
    )
    group.add_argument(
        "--fps", type=_numbers.whole(1, 240), help="frames per second of the file"
    )


def _add_sampling(group: Any) -> None:
    group.add_argument(
        "--steps",
        type=_numbers.whole(1, _numbers.MAX_STEPS),
        help="denoising steps (as published)",
    )
    group.add_argument(
        "--guidance",
        type=_numbers.real(0.0, 1000.0),
        help="guidance scale (as published): classifier-free, where 1 or less runs "
        "without; HunyuanVideo reads it itself",
    )
    group.add_argument(
        "--true-cfg",
        type=_numbers.real(0.0, 1000.0),
        help="classifier-free guidance of a network that reads its scale (none)",
    )
    group.add_argument(
        "--guidance-2",
        type=_numbers.real(0.0, 1000.0),
        help="of the second network of a pair (that of the first)",
    )
    _shared.add_seed_argument(group, "of the first video's noise (0)")
    group.add_argument(
        "--scheduler",
        choices=_names.SCHEDULERS,
        help="what fits the network: ddim, dpm (CogVideoX), unipc, euler, lcm (Wan; "
        "lcm adds new noise after each step, for models of few steps); default: the "
        "pipeline's own",
    )
    group.add_argument(
        "--shift",
        type=_numbers.real(0.01, 1000.0),
        help="of the flow sigmas (the pipeline's own)",
    )
    _shared.add_given_arguments(group)
    group.add_argument(
        "--dtype",
        choices=_shared.DTYPES,
        default="auto",
        help="of parameters and arithmetic; auto: float32 on CPUs, else bfloat16",
    )


def _add_method(group: Any) -> None:
    group.add_argument(
        "--policy",
        metavar="FILE.json|int8|nvfp4|none",
        default="none",
        help="who chooses routes and skips: a file of `sixbit calibrate`, one route "
        "everywhere, or none: activations are not quantized (none)",
    )
    group.add_argument(
        "--stable-route",
        choices=_shared.STABLE_ROUTES,
        default="nvfp4",
        help="what runs where the policy file predicts a small error (nvfp4)",
    )
    group.add_argument(
        "--cache-format",
        choices=("bf16", "int8", "nvfp4", "float32"),
        default="bf16",
        help="storage of the delta cache (bf16)",
    )
    _shared.add_attention_argument(group)
    group.add_argument(
        "--tiled",
        action="store_true",
        help="decode (and encode pictures) in overlapping tiles: less memory, slightly "
        "other pixels",
    )


def _size(word: str) -> tuple[int, int]:
    """(width, height) of 720x480."""
    width, found, height = word.lower().partition("x")
    if not found or not width.isdecimal() or not height.isdecimal():
        raise argparse.ArgumentTypeError(f"expected as 720x480, found {word!r}")
    return int(width), int(height)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from sixbit_jax.commands._progress import progress
    from sixbit_jax.pipelines import outputs
    from sixbit_jax.pipelines.pipeline import load_pipeline

    _compile_cache.use_cache(args)
    texts = [args.prompt] if args.prompts is None else read_prompts(args.prompts)
    pipe = load_pipeline(args.model, dtype=_shared.compute_dtype(args.dtype))
    width, height = args.size or (None, None)
    given = {
        "frames": args.frames,
        "height": height,
        "width": width,
        "num_steps": _shared.steps_of(args),
        "guidance_scale": args.guidance,
        "true_cfg_scale": args.true_cfg,
        "fps": args.fps,
    }
    shots = _pictures.plan_shots(args, pipe, texts, given)
    jobs = outputs.plan_jobs(shots, videos=args.videos, seed=args.seed)
    guided = jobs[0].settings.guided
    options = _options(args, pipe)
    heads = pipe.network_config.num_attention_heads
    options["mesh"] = _mesh.mesh_of(args, heads, guided=guided)
    facts = {
        "pipeline": pipe.header.pipeline_class,
        "negative_prompt": args.negative_prompt if guided else "",
        "policy": args.policy,
        "scheduler": args.scheduler,
        "shift": args.shift,
        "sigmas": args.sigmas,
        "timesteps": args.timesteps,
        "attention": args.attention,
        "cache_format": args.cache_format,
        "tiled": args.tiled,
        "dtype": pipe.dtype.name,
    }
    writer = outputs.Outputs(args.out, jobs, facts, inputs=(args.model,))
    todo = writer.missing()
    for settings in dict.fromkeys(job.settings for job in todo):
        _check_memory(args, pipe, settings, options["policy"], jobs[0].first)
    began = time.perf_counter()
    with progress(len(todo), quiet=args.quiet) as (tell, say):
        for skipped in [job for job in jobs if job not in todo]:
            say(f"{writer.path(skipped)}: there already")
        if not todo:
            return 0
        for batch in _pictures.batches(todo):
            made = pipe.videos(
                [(job.prompt, job.seed) for job in batch],
                batch[0].settings,
                pictures=_pictures.read_for(pipe, batch),
                fit=args.fit,
                negative_prompt=args.negative_prompt,
                tell=tell,
                tiled=args.tiled,
                guidance_scale_2=args.guidance_2,
                scheduler=args.scheduler,
                shift=args.shift,
                sigmas=args.sigmas,
                timesteps=args.timesteps,
                **options,
            )
            for job, video in zip(batch, made, strict=True):
                if video.cut:
                    say(f"prompt too long, its end was not read: {video.cut!r}")
                found = writer.write(job, video)
                say(f"{writer.path(job)}: {_summary(found)}")
    total = time.perf_counter() - began
    print(f"{args.out}: {len(todo)} of {len(jobs)} videos in {total:.1f} s")
    return 0


def _check_memory(
    args: argparse.Namespace, pipe: Any, settings: Any, policy: Any, picture: Any
) -> None:
    """Refuses what the device cannot hold, before anything is loaded."""
    from sixbit_jax.pipelines import memory

    needed = pipe.memory(
        settings,
        cached_blocks=memory.cached_deltas(
            policy, pipe.description, args.cache_format, guided=settings.guided
        ),
        cache_format=args.cache_format,
        tiled=args.tiled,
        pictures=picture is not None,
    )
    memory.check(needed, memory.device_memory())


def _summary(facts: dict[str, Any]) -> str:
    parts = ", ".join(f"{name} {s:.1f} s" for name, s in facts["seconds"].items())
    peak = facts["peak_bytes"]
    return parts + (f", peak {peak / 1e9:.2f} GB" if peak else "")


def _options(args: argparse.Namespace, pipe: Any) -> dict[str, Any]:
    """`policy` and `execution` of the sampler.

    Raises:
      ValueError: for a policy that needs quantized weights, where there are none.
    """
    from sixbit_jax.policies import fixed
    from sixbit_jax.routes import Route
    from sixbit_jax.sampling.options import Execution

    stored = any(spec.compressed for spec, _ in pipe.headers["transformer"].specs())
    if args.policy != "none" and not stored:
        raise ValueError(
            f"--policy {args.policy}: expected quantized weights (`sixbit convert "
            f"--weights nvfp4`), found plain ones in {args.model}"
        )
    if args.stable_route != "nvfp4" and args.policy in ("none", "int8", "nvfp4"):
        raise ValueError(
            f"--stable-route {args.stable_route}: expected --policy FILE.json, whose "
            f"routes it changes, found {args.policy}"
        )
    if args.policy in ("int8", "nvfp4"):
        policy: Any = fixed(route=Route[args.policy.upper()])
    else:
        spec = args.policy
        if spec != "none" and not Path(spec).is_file():
            raise ValueError(
                f"--policy: expected none, int8, nvfp4 or a file that `sixbit "
                f"calibrate` wrote, found no file {spec}"
            )
        # What a policy file is held against, before the weights are loaded.
        network = SimpleNamespace(
            class_name=pipe.headers["transformer"].model_class,
            config=pipe.network_config,
            sites=pipe.description.sites,
            num_blocks=pipe.description.num_blocks,
        )
        policy = _shared.policy_for(spec, network, stable_route=args.stable_route)
    execution = Execution(
        dtype=pipe.dtype, attention=args.attention, cache_format=args.cache_format
    )
    return {"policy": policy, "execution": execution}


def read_prompts(file: Path) -> Sequence[str]:
    """The prompts of a text file, one per line; empty lines are left out.

    Raises:
      ValueError: if there is no such file, it is no UTF-8 text, or it is empty.
    """
    if not file.is_file():
        raise ValueError(f"--prompts: expected a text file, found none at {file}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {file}: expected UTF-8: {error}") from error
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise ValueError(f"--prompts {file}: expected a prompt per line, found none")
    return found
