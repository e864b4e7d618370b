"""Configurations by name: what `sixbit compare` and `sixbit demo` put side by side."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from sixbit_jax.commands._names import BUNDLED_POLICY, RECIPES, RECOMMENDED
from sixbit_jax.commands._networks import Network
from sixbit_jax.files import shown

if TYPE_CHECKING:
    from sixbit_jax.policies import Policy
    from sixbit_jax.report.runs import Configuration


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
    make: Callable[[int], "Policy"]


def _policies() -> ModuleType:
    # Imported on use: the names below are for help texts too.
    from sixbit_jax import policies

    return policies


def _fixed(route: str) -> "Policy":
    from sixbit_jax.routes import Route

    return _policies().fixed(route=Route[route])


def _step_cache(steps: int) -> "Policy":
    policies = _policies()
    return policies.fixed(skip=policies.uniform_skips(steps, 0.3))


NAMED = {
    "full": Named(
        "full precision",
        "the checkpoint's own weights, nothing quantized, nothing skipped",
        False,
        lambda steps: _policies().chain(),
    ),
    "w4a16": Named(
        "W4A16",
        "NVFP4 weights, activations as they are",
        True,
        lambda steps: _policies().chain(),
    ),
    "w4a8": Named(
        "W4A8",
        "NVFP4 weights, INT8 activations everywhere",
        True,
        lambda steps: _fixed("INT8"),
    ),
    "w4a6": Named(
        "W4A6",
        "stored weights (--quantized-model), 6-bit activations per token",
        True,
        lambda steps: _fixed("INT6"),
    ),
    "w4a4": Named(
        "W4A4",
        "NVFP4 weights, NVFP4 activations everywhere",
        True,
        lambda steps: _fixed("NVFP4"),
    ),
    "alternate": Named(
        "alternating",
        "NVFP4 weights, INT8 and NVFP4 activations in turn, step by step",
        True,
        lambda steps: _policies().alternate(),
    ),
    "random": Named(
        "random",
        "NVFP4 weights, half of the work in INT8, drawn anew in each step",
        True,
        lambda steps: _policies().random_routes(0, 0.5),
    ),
    "step-cache": Named(
        "step cache",
        "own weights, 30 % of the steps reuse the deltas of the step before",
        False,
        _step_cache,
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
    spec: str,
    *,
    plain: Network,
    quantized: Network,
    steps: int,
    cache_format: str = "bf16",
) -> "Configuration":
    """The configuration of a name or a policy file.

    Args:
      spec: a key of `NAMED` or of `recipes.RECIPES`, "6bit", or a JSON file.
      plain: the network with the checkpoint's own weights.
      quantized: the network with NVFP4 weights.
      steps: denoising steps.
      cache_format: storage of the delta cache.

    Raises:
      ValueError: for another name, or a file that is no policy of this model.
    """
    from sixbit_jax.policies.policy_file import load_policy, policy_from_file
    from sixbit_jax.recipes import recipe_of
    from sixbit_jax.report.runs import Configuration
    from sixbit_jax.sampling.api import is_quantized

    def made(network: Network, **more: Any) -> "Configuration":
        return Configuration(
            model=network.model,
            low_noise=network.low_noise,
            cache_format=cache_format,
            **more,
        )

    if spec in NAMED:
        item = NAMED[spec]
        return made(
            quantized if item.quantized else plain,
            name=item.label,
            policy=item.make(steps),
            description=item.description,
        )
    if spec in RECIPES:
        recipe = recipe_of(spec)
        network = plain
        if not is_quantized(plain.model):
            network = plain.changed(recipe.quantize)
        return made(
            network,
            name=recipe.name,
            policy=recipe.policy(network.model),
            description=recipe.description,
        )
    file = policy_path(spec)
    return made(
        quantized,
        name="6-bit" if spec == RECOMMENDED else shown(file.stem),
        policy=policy_from_file(file, quantized.model),
        description=f"quantized weights, routes and skips chosen by {shown(file.name)}",
        policy_file=load_policy(file),
    )


def distinct(configurations: "Sequence[Configuration]") -> "list[Configuration]":
    """The configurations with a number behind each name that was there before."""
    found: list[Configuration] = []
    for configuration in configurations:
        taken = {other.name for other in found}
        name, number = configuration.name, 2
        while name in taken:
            name, number = f"{configuration.name} ({number})", number + 1
        found.append(replace(configuration, name=name))
    return found
