"""Configurations by name: what `sixbit compare` and `sixbit demo` put side by side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sixbit_jax.policies import (
    Policy,
    alternate,
    chain,
    fixed,
    random_routes,
    uniform_skips,
)
from sixbit_jax.policies.policy_file import load_policy, policy_from_file
from sixbit_jax.recipes import RECIPES, recipe_of
from sixbit_jax.report.runs import Configuration
from sixbit_jax.routes import Route
from sixbit_jax.sampling.api import is_quantized

BUNDLED = Path(__file__).parent.parent / "demo"
BUNDLED_CHECKPOINT = BUNDLED / "checkpoint"
BUNDLED_POLICY = BUNDLED / "policy.json"
RECOMMENDED = "6bit"

DEFAULT_CAPTIONS = (
    "a red circle moves left on a blue background",
    "a yellow triangle grows on a black background",
)


class Named(NamedTuple):
    """A configuration that needs no file.

    Attributes:
      label: name in tables.
      description: one line.
      quantized: whether it runs on NVFP4 weights.
      make: number of steps -> policy.
    """

    label: str
    description: str
    quantized: bool
    make: Callable[[int], Policy]


NAMED = {
    "full": Named(
        "full precision",
        "the checkpoint's own weights, nothing quantized, nothing skipped",
        False,
        lambda steps: chain(),
    ),
    "w4a16": Named(
        "W4A16",
        "NVFP4 weights, activations as they are",
        True,
        lambda steps: chain(),
    ),
    "w4a8": Named(
        "W4A8",
        "NVFP4 weights, INT8 activations everywhere",
        True,
        lambda steps: fixed(route=Route.INT8),
    ),
    "w4a6": Named(
        "W4A6",
        "stored weights (--quantized-model), 6-bit activations per token",
        True,
        lambda steps: fixed(route=Route.INT6),
    ),
    "w4a4": Named(
        "W4A4",
        "NVFP4 weights, NVFP4 activations everywhere",
        True,
        lambda steps: fixed(route=Route.NVFP4),
    ),
    "alternate": Named(
        "alternating",
        "NVFP4 weights, INT8 and NVFP4 activations in turn, step by step",
        True,
        lambda steps: alternate(),
    ),
    "random": Named(
        "random",
        "NVFP4 weights, half of the work in INT8, drawn anew in each step",
        True,
        lambda steps: random_routes(0, 0.5),
    ),
    "step-cache": Named(
        "step cache",
        "own weights, 30 % of the steps reuse the deltas of the step before",
        False,
        lambda steps: fixed(skip=uniform_skips(steps, 0.3)),
    ),
}


def names_and_descriptions() -> str:
    """All configurations, for a command's help."""
    lines = [f"  {name:11} {item.description}" for name, item in NAMED.items()]
    lines.append("  dvd-quant   DVD-Quant: refined 4-bit grids, ARQ, delta-guided bits")
    lines.append(f"  {RECOMMENDED:11} the policy that comes with the bundled model")
    lines.append("  FILE.json   a policy that `sixbit calibrate` wrote")
    return "\n".join(lines)


def policy_path(spec: str) -> Path:
    """The policy file that "6bit" or a file name stands for.

    Raises:
      ValueError: if there is no such file.
    """
    file = BUNDLED_POLICY if spec == RECOMMENDED else Path(spec)
    if not file.is_file():
        raise ValueError(
            "configuration: expected a policy file or one of "
            f"{', '.join([*NAMED, RECOMMENDED])}; found {spec!r}"
        )
    return file


def configuration_for(
    spec: str, *, plain: Any, quantized: Any, steps: int, cache_format: str = "bf16"
) -> Configuration:
    """The configuration of a name or a policy file.

    Args:
      spec: a key of `NAMED` or of `recipes.RECIPES`, "6bit", or a JSON file.
      plain: the model with the checkpoint's own weights.
      quantized: the model with NVFP4 weights.
      steps: denoising steps.
      cache_format: storage of the delta cache.

    Raises:
      ValueError: for another name, or a file that is no policy of this model.
    """
    if spec in NAMED:
        item = NAMED[spec]
        return Configuration(
            name=item.label,
            model=quantized if item.quantized else plain,
            policy=item.make(steps),
            cache_format=cache_format,
            description=item.description,
        )
    if spec in RECIPES:
        recipe = recipe_of(spec)
        model = plain if is_quantized(plain) else recipe.quantize(plain)
        return Configuration(
            name=recipe.name,
            model=model,
            policy=recipe.policy(model),
            cache_format=cache_format,
            description=recipe.description,
        )
    file = policy_path(spec)
    policy = policy_from_file(file, quantized)
    return Configuration(
        name="6-bit" if spec == RECOMMENDED else file.stem,
        model=quantized,
        policy=policy,
        cache_format=cache_format,
        description=f"quantized weights, routes and skips chosen by {file.name}",
        policy_file=load_policy(file),
    )
