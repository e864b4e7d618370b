"""What several commands need: sampling options, dtype, policy, versions."""

import argparse
from pathlib import Path
from typing import Any

from sixbit_jax import versions as version_facts
from sixbit_jax.commands import _numbers
from sixbit_jax.commands._names import SCHEDULERS

DTYPES = ("auto", "float32", "bfloat16")
REPORT = "report"
"""The kind of the directories that `demo` and `compare` write."""


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that every sampling command has."""
    group = parser.add_argument_group("sampling")
    add_schedule_arguments(group)
    add_seed_argument(group, "of the noise (0)")
    group.add_argument(
        "--batched-guidance",
        action="store_true",
        help="both guidance branches in one forward pass with one shared plan",
    )
    add_dtype_argument(group)
    group.add_argument("--quiet", action="store_true", help="no progress bar")


def add_schedule_arguments(group: Any) -> None:
    """`--steps`, `--guidance`, `--scheduler` and `--shift`."""
    group.add_argument(
        "--steps",
        type=_numbers.whole(1, _numbers.MAX_STEPS),
        help="denoising steps (the network's, 50)",
    )
    group.add_argument(
        "--guidance",
        type=_numbers.real(0.0, _numbers.MAX_GUIDANCE),
        help="classifier-free guidance scale; 1 or less runs one branch only (the "
        "network's: CogVideoX 6, Wan 5, HunyuanVideo 1)",
    )
    group.add_argument(
        "--scheduler",
        choices=SCHEDULERS,
        help="ddim and dpm fit CogVideoX, unipc and euler Wan and HunyuanVideo (the "
        "checkpoint's own, or the network's published one)",
    )
    group.add_argument(
        "--shift",
        type=_numbers.real(0.01, 100.0),
        help="of the noise levels of unipc and euler (the checkpoint's, or the "
        "published one for the size)",
    )
    add_given_arguments(group)


def add_given_arguments(group: Any) -> None:
    """`--sigmas` and `--timesteps`."""
    given = group.add_mutually_exclusive_group()
    for name, text in (
        ("sigmas", "noise levels before each step, before the shift, as 1,0.75,0.5"),
        ("timesteps", "of the network at each step, not shifted, as 1000,750,500"),
    ):
        given.add_argument(
            f"--{name}", metavar="N,N,...", type=_numbers.reals, help=text
        )


def steps_of(args: argparse.Namespace) -> int | None:
    """`--steps`; without it, as many as `--sigmas` or `--timesteps` name."""
    given = args.sigmas or args.timesteps
    return len(given) if args.steps is None and given else args.steps


def add_pair_argument(group: Any) -> None:
    """`--guidance-2`."""
    group.add_argument(
        "--guidance-2",
        type=_numbers.real(0.0, _numbers.MAX_GUIDANCE),
        metavar="SCALE",
        help="of the network for low noise, where MODEL_DIR holds a pair (Wan2.2-A14B; "
        "default: that of --guidance)",
    )


def add_seed_argument(group: Any, text: str) -> None:
    """`--seed`."""
    group.add_argument(
        "--seed", type=_numbers.whole(0, _numbers.MAX_SEED), default=0, help=text
    )


def add_dtype_argument(group: Any) -> None:
    """`--dtype`."""
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="compute dtype; auto: float32 on CPUs, where it is faster, else bfloat16",
    )


def add_size_arguments(group: Any, text: str) -> None:
    """`--frames`, `--height` and `--width`."""
    for name in ("frames", "height", "width"):
        largest = _numbers.MAX_FRAMES if name == "frames" else _numbers.MAX_SIDE
        group.add_argument(f"--{name}", type=_numbers.whole(1, largest), help=text)


def add_condition_arguments(parser: Any) -> None:
    """What networks take besides prompts: files of tensors, a row per prompt."""
    group = parser.add_argument_group(
        "conditions (safetensors, with a tensor of the option's name)"
    )
    for name, text in (
        ("image-latents", "for I2V: [batch, frames, channels, height, width]"),
        ("image-embeds", "for Wan2.1 I2V: image tokens [batch, tokens, width]"),
        (
            "first-frames",
            "for Wan2.2 TI2V: clean latents of the first frames, as image latents",
        ),
    ):
        group.add_argument(f"--{name}", metavar="FILE", type=Path, help=text)


def add_attention_argument(parser: Any, note: str = "") -> None:
    """The option of what attention multiplies."""
    parser.add_argument(
        "--attention",
        choices=("bf16", "int8"),
        help=f"precision of the attention scores{note}: int8 quantizes queries and "
        "keys (default: as the policy or the recipe says, else bf16)",
    )


def compute_dtype(name: str) -> Any:
    """The dtype of `--dtype`."""
    import jax
    import jax.numpy as jnp

    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


STABLE_ROUTES = ("nvfp4", "int8", "auto")


def policy_for(spec: str, model: Any, *, stable_route: str = "nvfp4") -> Any:
    """The policy of `--policy`: "none" or a JSON file of `sixbit calibrate`.

    Args:
      spec: the text of the option.
      model: that the policy is for.
      stable_route: one of `STABLE_ROUTES`.
    """
    from sixbit_jax.policies import chain
    from sixbit_jax.routes import Route

    if spec == "none":
        return chain()
    if not Path(spec).is_file():
        raise ValueError(
            f"--policy: expected `none` or a JSON file that `sixbit calibrate` wrote, "
            f"found no file {spec}"
        )
    from sixbit_jax.policies.policy_file import policy_from_file

    route = "auto" if stable_route == "auto" else Route[stable_route.upper()]
    return policy_from_file(spec, model, stable_route=route)


def versions() -> dict[str, str]:
    """Versions of what computed a result."""
    import jax

    device = jax.devices()[0]
    return {
        **version_facts.versions("jax", "jaxlib", "flax", "numpy"),
        "backend": device.platform,
        "device": device.device_kind,
    }
