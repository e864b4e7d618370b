"""What several commands need: dtype, scheduler, policy, and files that appear whole."""

import argparse
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DTYPES = ("auto", "float32", "bfloat16")
SCHEDULERS = {"ddim": "CogVideoXDDIMScheduler", "dpm": "CogVideoXDPMScheduler"}
REPORT = "report.json"


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that every sampling command has."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--steps", type=int, default=50, help="denoising steps (50)")
    group.add_argument(
        "--guidance",
        type=float,
        default=6.0,
        help="classifier-free guidance scale (6.0); 1 runs one branch only",
    )
    group.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    group.add_argument(
        "--batched-guidance",
        action="store_true",
        help="both guidance branches in one forward pass with one shared plan",
    )
    group.add_argument(
        "--scheduler",
        choices=tuple(SCHEDULERS),
        help="default: the checkpoint's own",
    )
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="compute dtype; auto: float32 on CPUs, where it is faster, else bfloat16",
    )
    group.add_argument("--quiet", action="store_true", help="no progress bar")


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

    found = {
        name: importlib.metadata.version(name)
        for name in ("sixbit-jax", "jax", "jaxlib", "flax", "numpy")
    }
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **found,
        "backend": device.platform,
        "device": device.device_kind,
    }


@contextmanager
def report_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling of `path`, renamed to it when the body succeeds.

    An earlier report at `path` is replaced then; anything else there is refused.

    Raises:
      ValueError: if `path` exists and is not a report.
    """
    path = path.absolute()
    occupied = path.exists() and not (path / REPORT).is_file()
    if occupied and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(
            f"--out: expected a new directory or one with an earlier report, found "
            f"{path} without {REPORT} in it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.mkdir()
        yield partial
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
