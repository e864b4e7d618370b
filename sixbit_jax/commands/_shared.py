"""What several commands need: sampling options, dtype, scheduler, policy, versions."""

import argparse
from pathlib import Path
from typing import Any

from sixbit_jax import versions as version_facts
from sixbit_jax.commands import _numbers

DTYPES = ("auto", "float32", "bfloat16")
SCHEDULERS = {"ddim": "CogVideoXDDIMScheduler", "dpm": "CogVideoXDPMScheduler"}
REPORT = "report"
"""The kind of the directories that `demo` and `compare` write."""


def add_sampling_arguments(
    parser: argparse.ArgumentParser, schedulers: tuple[str, ...] = tuple(SCHEDULERS)
) -> argparse._ArgumentGroup:
    """Options that every sampling command has.

    Args:
      parser: the command's.
      schedulers: names that `--scheduler` takes.

    Returns:
      The group, for options of the command's own.
    """
    group = parser.add_argument_group("sampling")
    add_steps_argument(group)
    group.add_argument(
        "--guidance",
        type=_numbers.real(0.0, 1000.0),
        default=6.0,
        help="classifier-free guidance scale (6.0); 1 runs one branch only",
    )
    add_seed_argument(group, "of the noise (0)")
    group.add_argument(
        "--batched-guidance",
        action="store_true",
        help="both guidance branches in one forward pass with one shared plan",
    )
    group.add_argument(
        "--scheduler",
        choices=schedulers,
        help="default: the checkpoint's own",
    )
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="compute dtype; auto: float32 on CPUs, where it is faster, else bfloat16",
    )
    group.add_argument("--quiet", action="store_true", help="no progress bar")
    return group


def add_schedule_arguments(group: Any) -> None:
    """`--sigmas` and `--timesteps`."""
    kinds = group.add_mutually_exclusive_group()
    for name, text in (
        ("sigmas", "noise levels before each step, before the shift, as 1,0.75,0.5"),
        ("timesteps", "of the network at each step, not shifted, as 1000,750,500"),
    ):
        kinds.add_argument(
            f"--{name}", metavar="N,N,...", type=_numbers.reals, help=text
        )


def steps_of(args: argparse.Namespace) -> int | None:
    """`--steps`; without it, as many as `--sigmas` or `--timesteps` name."""
    given = args.sigmas or args.timesteps
    return len(given) if args.steps is None and given else args.steps


def add_steps_argument(group: Any) -> None:
    """`--steps`."""
    group.add_argument(
        "--steps",
        type=_numbers.whole(1, _numbers.MAX_STEPS),
        default=50,
        help="denoising steps (50)",
    )


def add_seed_argument(group: Any, text: str) -> None:
    """`--seed`."""
    group.add_argument(
        "--seed", type=_numbers.whole(0, _numbers.MAX_SEED), default=0, help=text
    )


def add_size_arguments(group: Any, text: str) -> None:
    """`--frames`, `--height` and `--width`."""
    for name in ("frames", "height", "width"):
        largest = _numbers.MAX_FRAMES if name == "frames" else _numbers.MAX_SIDE
        group.add_argument(f"--{name}", type=_numbers.whole(1, largest), help=text)


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


def scheduler_for(header: Any, name: str | None) -> Any:
    """The checkpoint's scheduler, or another one on the same noise schedule.

    Args:
      header: of the checkpoint.
      name: key of `SCHEDULERS`, or None.

    Raises:
      ValueError: if the checkpoint has none and none is named.
    """
    from sixbit_jax.sampling.schedulers import from_config

    config = dict(header.scheduler or {})
    if name is not None:
        config["_class_name"] = SCHEDULERS[name]
    if not config:
        raise ValueError(
            "scheduler: expected one in the checkpoint (converted from a diffusers "
            "root) or --scheduler, found neither"
        )
    return from_config(config)


STABLE_ROUTES = ("nvfp4", "int8", "auto")


def policy_for(spec: str, model: Any, *, stable_route: str = "nvfp4") -> Any:
    """The policy of `--policy`: "none" or a JSON file of `sixbit calibrate`.

    Args:
      spec: of the option.
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
