"""`sixbit sample`: prompt embeddings in, latents out."""

import argparse
import time
from pathlib import Path
from typing import Any

from sixbit_jax import files
from sixbit_jax.commands import _inputs, _numbers, _shared
from sixbit_jax.commands._networks import Network, load_network, quantized_by
from sixbit_jax.commands._settings import asked_size, settings_for
from sixbit_jax.commands._targets import check_targets
from sixbit_jax.commands._tensors import (
    PromptFile,
    condition_files,
    read_conditions,
    read_prompt_file,
    read_tensors,
)

DESCRIPTION = """\
Denoises a batch of videos with a converted checkpoint, in one compiled program.

Prompt embeddings come from a safetensors file with the tensors
  prompt_embeds           [batch, tokens, E] (or [tokens, E])
  negative_prompt_embeds  the same shape; needed unless --guidance is 1 or less
and, for networks that ask (HunyuanVideo), prompt_attention_mask and
pooled_prompt_embeds, as diffusers' `pipe.encode_prompt` returns them. The latents
are written as
  latents                 float32 [batch, frames, channels, height, width]
which `pipe.decode_latents` of diffusers turns into pixels (Wan: its VAE's `decode`,
with channels before frames). Steps, guidance, scheduler and size are the network's
published ones where nothing else is said.
"""
EPILOG = """\
examples, CogVideoX-5b at its own size (13 latent frames of 60 x 90), and Wan2.1:
  sixbit convert CogVideoX-5b cogvideox-5b --weights nvfp4
  sixbit sample cogvideox-5b --prompt-embeds prompt.safetensors \\
      --out latents.safetensors --trace trace.npz
  sixbit sample wan-1.3b --prompt-embeds prompt.safetensors --scheduler unipc \\
      --shift 3 --frames 21 --height 60 --width 104 --out latents.safetensors
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
    _inputs.add_as_given_argument(parser)
    _shared.add_condition_arguments(parser)
    _shared.add_sampling_arguments(parser)
    _shared.add_pair_argument(parser)
    parser.add_argument(
        "--noise",
        metavar="FILE",
        type=Path,
        help="initial latents in the place of those that --seed draws: safetensors "
        "with noise [batch, frames, channels, height, width]",
    )
    size = parser.add_argument_group(
        "size, in latents (pixels / 8, Wan2.2 TI2V / 16; frames (n - 1) / 4 + 1)"
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
        "--embedded-guidance",
        type=_numbers.real(0.0, _numbers.MAX_GUIDANCE),
        metavar="SCALE",
        help="scale that the network itself reads (HunyuanVideo; as published: 6)",
    )
    method.add_argument(
        "--dynamic-guidance",
        action="store_true",
        help="diffusers' cosine schedule of the guidance scale (CogVideoX DPM)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import numpy as np

    _check(args)
    prompts = read_prompt_file(args.prompt_embeds)
    given = read_conditions(args, rows=len(prompts.embeds))
    noise = None
    if args.noise is not None:
        noise = read_tensors(args.noise, "noise")["noise"]
    network = load_network(args.model, second_guidance=args.guidance_2)
    began = time.perf_counter()
    result = _sample(args, network, prompts, given, noise)
    latents = np.asarray(result.latents)
    if not np.isfinite(latents).all():
        raise ValueError(
            f"{args.model}: the latents are not finite; nothing was written"
        )
    _write(args, latents, result.trace)
    seconds = time.perf_counter() - began
    print(f"{files.shown(args.out)}: latents {list(latents.shape)} in {seconds:.1f} s")
    return 0


def _check(args: argparse.Namespace) -> None:
    policy_file = None if args.policy in (None, "none") else Path(args.policy)
    check_targets(
        {"--out": args.out, "--trace": args.trace},
        inputs=(
            args.model,
            args.prompt_embeds,
            *condition_files(args),
            args.noise,
            policy_file,
        ),
    )
    if args.stable_route != "nvfp4" and policy_file is None:
        raise ValueError(
            f"--stable-route {args.stable_route}: expected --policy FILE.json, whose "
            f"routes it changes, found {args.policy or 'none'}"
        )


def _sample(
    args: argparse.Namespace,
    network: Network,
    prompts: PromptFile,
    given: dict[str, Any],
    noise: Any,
) -> Any:
    import jax.numpy as jnp

    from sixbit_jax.recipes import recipe_of
    from sixbit_jax.sampling.api import sample
    from sixbit_jax.sampling.options import Execution, Guidance, Prompt

    chosen = settings_for(args, network, size=asked_size(args), as_given=args.as_given)
    policy = _shared.policy_for(
        args.policy or "none", network.model, stable_route=args.stable_route
    )
    options: dict[str, Any] = {}
    if args.recipe is not None:
        recipe = recipe_of(args.recipe)
        network = network.changed(lambda model: quantized_by(recipe, model))
        options = recipe.sampling()
        if args.policy is None:
            policy = recipe.policy(network.model)
    for name in ("cache_format", "attention"):
        if vars(args)[name] is not None:
            options[name] = vars(args)[name]
    return sample(
        network.model,
        chosen.scheduler,
        Prompt(
            jnp.asarray(prompts.embeds),
            prompts.negative if chosen.guided else None,
            as_given=chosen.as_given,
            **prompts.chosen(guided=chosen.guided),
        ),
        latent_shape=chosen.latent_shape,
        num_steps=chosen.num_steps,
        guidance=Guidance(
            chosen.scale,
            dynamic=args.dynamic_guidance,
            embedded=args.embedded_guidance,
        ),
        conditions=network.conditions(given),
        seed=args.seed,
        noise=noise,
        policy=policy,
        execution=Execution(
            **options,
            batched_guidance=args.batched_guidance,
            dtype=_shared.compute_dtype(args.dtype),
            progress=not args.quiet,
        ),
    )


def _write(args: argparse.Namespace, latents: Any, trace: Any) -> None:
    import jax
    import numpy as np
    from safetensors.numpy import save

    with files.replaced_file(args.out) as partial:
        # Not save_file, which gives the file to its owner alone.
        partial.write_bytes(save({"latents": latents}))
    if args.trace is not None:
        with files.replaced_file(args.trace) as partial, partial.open("wb") as file:
            np.savez(file, **jax.tree.map(np.asarray, trace)._asdict())
