"""`sixbit sample`: prompt embeddings in, latents out."""

import argparse
import time
from pathlib import Path
from typing import Any

from sixbit_jax import files
from sixbit_jax.commands import _inputs, _numbers, _shared
from sixbit_jax.commands._targets import check_targets

DESCRIPTION = """\
Denoises a batch of videos with a converted checkpoint, in one compiled program.

Prompt embeddings come from a safetensors file with the tensors
  prompt_embeds           [batch, tokens, E] (or [tokens, E])
  negative_prompt_embeds  the same shape; needed unless --guidance is 1
as diffusers' `pipe.encode_prompt` returns them. The latents are written as
  latents                 float32 [batch, frames, channels, height, width]
which `pipe.decode_latents` of diffusers turns into pixels.
"""
_SCHEDULERS = ("ddim", "dpm", "unipc", "euler", "lcm")
_STEPS = 50
EPILOG = """\
example, CogVideoX-5b at its own size (13 latent frames of 60 x 90):
  sixbit convert CogVideoX-5b cogvideox-5b --weights nvfp4
  sixbit sample cogvideox-5b --prompt-embeds prompt.safetensors \\
      --out latents.safetensors --trace trace.npz

a Wan of four steps (with its LoRA in the weights):
  sixbit convert Wan2.1-T2V-14B wan-4 --weights nvfp4 --lora four-steps.safetensors
  sixbit sample wan-4 --prompt-embeds prompt.safetensors --out latents.safetensors \\
      --scheduler euler --shift 5 --sigmas 1,0.75,0.5,0.25 --guidance 1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "model", metavar="MODEL_DIR", type=Path, help="made by `sixbit convert`"
    )
    parser.add_argument(
        "--prompt-embeds",
        metavar="FILE",
        type=Path,
        required=True,
        help="safetensors with prompt_embeds and negative_prompt_embeds",
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="latents (safetensors)"
    )
    parser.add_argument(
        "--trace",
        metavar="FILE",
        type=Path,
        help="also write plans and stats of all steps (npz)",
    )
    parser.add_argument(
        "--image-latents",
        metavar="FILE",
        type=Path,
        help="for I2V models: safetensors with image_latents "
        "[batch, frames, channels, height, width]",
    )
    sampling = _shared.add_sampling_arguments(parser, _SCHEDULERS)
    sampling.add_argument(
        "--shift",
        type=_numbers.real(0.01, 1000.0),
        help="of the flow sigmas (the checkpoint's own)",
    )
    _shared.add_schedule_arguments(sampling)
    # With a given schedule, its own number.
    parser.set_defaults(steps=None)
    size = parser.add_argument_group(
        "size, in latents (CogVideoX: pixels / 8; frames (n - 1) / 4 + 1)"
    )
    _shared.add_size_arguments(size, "default: the training size")
    method = parser.add_argument_group("method")
    _inputs.add_recipe_argument(method)
    method.add_argument(
        "--policy",
        metavar="FILE.json|none",
        help="who chooses routes and skips: a file of `sixbit calibrate` (needs "
        "quantized weights), or none for full precision (default: the recipe's, or "
        "none)",
    )
    method.add_argument(
        "--stable-route",
        choices=_shared.STABLE_ROUTES,
        default="nvfp4",
        help="what runs where the policy predicts a small error: nvfp4, for which it "
        "was calibrated; auto: the fastest here, which is int8 without FP4 tensor "
        "cores, for example on Hopper (nvfp4)",
    )
    method.add_argument(
        "--cache-format",
        choices=("bf16", "int8", "nvfp4", "float32"),
        help="storage of the delta cache (the recipe's, or bf16)",
    )
    _shared.add_attention_argument(method)
    method.add_argument(
        "--dynamic-guidance",
        action="store_true",
        help="diffusers' cosine schedule of the guidance scale (CogVideoX DPM)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import jax
    import numpy as np
    from safetensors.numpy import save

    from sixbit_jax.checkpoint import load
    from sixbit_jax.recipes import recipe_of
    from sixbit_jax.sampling.api import sample
    from sixbit_jax.sampling.options import Conditions, Execution, Guidance, Prompt

    policy_file = None if args.policy in (None, "none") else Path(args.policy)
    check_targets(
        {"--out": args.out, "--trace": args.trace},
        inputs=(args.model, args.prompt_embeds, args.image_latents, policy_file),
    )
    embeds = read_tensors(args.prompt_embeds, "prompt_embeds", "negative_prompt_embeds")
    image = {}
    if args.image_latents is not None:
        image = read_tensors(args.image_latents, "image_latents")
    dtype = _shared.compute_dtype(args.dtype)
    loaded: tuple[Any, Any] = load(args.model)
    model, header = loaded
    options: dict[str, Any] = {}
    if args.stable_route != "nvfp4" and args.policy in (None, "none"):
        raise ValueError(
            f"--stable-route {args.stable_route}: expected --policy FILE.json, whose "
            f"routes it changes, found {args.policy or 'none'}"
        )
    policy = _shared.policy_for(
        args.policy or "none", model, stable_route=args.stable_route
    )
    if args.recipe is not None:
        recipe = recipe_of(args.recipe)
        model = _inputs.quantized_by(recipe, model)
        options = recipe.sampling()
        if args.policy is None:
            policy = recipe.policy(model)
    if args.cache_format is not None:
        options["cache_format"] = args.cache_format
    if args.attention is not None:
        options["attention"] = args.attention
    began = time.perf_counter()
    result = sample(
        model,
        _scheduler(args, model, header),
        Prompt(
            _batched(embeds["prompt_embeds"]),
            _batched(embeds["negative_prompt_embeds"])
            if "negative_prompt_embeds" in embeds and args.guidance > 1.0
            else None,
        ),
        latent_shape=latent_shape(model, args.frames, args.height, args.width),
        num_steps=_shared.steps_of(args) or _STEPS,
        guidance=Guidance(args.guidance, dynamic=args.dynamic_guidance),
        conditions=Conditions(image_latents=image.get("image_latents")),
        seed=args.seed,
        policy=policy,
        execution=Execution(
            **options,
            batched_guidance=args.batched_guidance,
            dtype=dtype,
            progress=not args.quiet,
        ),
    )
    latents = np.asarray(result.latents)
    if not np.isfinite(latents).all():
        raise ValueError(
            f"{args.model}: the latents are not finite; nothing was written"
        )
    with files.replaced_file(args.out) as partial:
        # Not save_file, which gives the file to its owner alone.
        partial.write_bytes(save({"latents": latents}))
    if args.trace is not None:
        with files.replaced_file(args.trace) as partial, partial.open("wb") as file:
            np.savez(file, **jax.tree.map(np.asarray, result.trace)._asdict())
    seconds = time.perf_counter() - began
    print(f"{files.shown(args.out)}: latents {list(latents.shape)} in {seconds:.1f} s")
    return 0


def _scheduler(args: argparse.Namespace, model: Any, header: Any) -> Any:
    """The checkpoint's scheduler, or the one that the options make of it."""
    from sixbit_jax.sampling.schedulers.choice import choose_scheduler

    if header.scheduler is None and args.scheduler is None:
        return _shared.scheduler_for(header, None)
    return choose_scheduler(
        model.description,
        header.scheduler,
        name=args.scheduler,
        shift=args.shift,
        sigmas=args.sigmas,
        timesteps=args.timesteps,
    )


def read_tensors(path: Path, *names: str) -> dict[str, Any]:
    """Some tensors of a safetensors file, float32.

    Raises:
      ValueError: if it is no safetensors file, or holds NaN or Inf in one of them.
    """
    import numpy as np
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"{path}: expected a safetensors file, found none")
    try:
        with safe_open(path, "flax") as file:
            held = sorted(file.keys())
            found = {name: file.get_tensor(name) for name in names if name in held}
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file: {error}") from error
    if names[0] not in found:
        raise ValueError(
            f"{path}: expected the tensor {names[0]}, found {', '.join(held) or 'none'}"
        )
    arrays = {name: np.asarray(value, np.float32) for name, value in found.items()}
    broken = [name for name, value in arrays.items() if not np.isfinite(value).all()]
    if broken:
        raise ValueError(f"{path}: NaN or Inf in {', '.join(broken)}")
    return arrays


def latent_shape(
    model: Any, frames: int | None, height: int | None, width: int | None
) -> tuple[int, int, int, int]:
    """(F, C, H, W) with the network's training size where nothing is given."""
    default = model.description.training_shape
    given = (frames, None, height, width)
    first, channels, rows, columns = (
        ours if asked is None else asked
        for asked, ours in zip(given, default, strict=True)
    )
    return first, channels, rows, columns


def _batched(embeds: Any) -> Any:
    return embeds[None] if embeds.ndim == 2 else embeds
