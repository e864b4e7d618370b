"""Devices that share one video: their mesh, and what its axes split.

A mesh has axes of these names, any of them:

* guidance: one branch of classifier-free guidance on each half; latents are exchanged
  once per step.
* sequence: tokens are split, attention exchanges them for heads (`nn.axes`).
* fsdp: the blocks' weights are split, and gathered a block ahead. These devices share
  the work as well: the two guidance branches, where they are two and no other axis
  splits those; otherwise tokens.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sixbit_jax.nn.axes import Axes

GUIDANCE, SEQUENCE, FSDP = "guidance", "sequence", "fsdp"
AXIS_NAMES = (GUIDANCE, SEQUENCE, FSDP)
BRANCHES = 2


def make_mesh(sizes: Mapping[str, int], devices: Any = None) -> Mesh:
    """A mesh of devices, with neighbours along `sequence`.

    ```python
    mesh = sixbit_jax.make_mesh({"guidance": 2, "sequence": 4})
    ```

    Args:
      sizes: devices along each axis, of the names `guidance`, `sequence` and `fsdp`.
      devices: in order; None takes the first of `jax.devices()`.

    Raises:
      ValueError: another name, a size below 1, or too few devices.
    """
    problems = [
        f"expected axes among {', '.join(AXIS_NAMES)}, found {name!r}"
        for name in sizes
        if name not in AXIS_NAMES
    ]
    problems += [
        f"{name}: expected at least 1, found {size!r}"
        for name, size in sizes.items()
        if type(size) is not int or size < 1
    ]
    devices = jax.devices() if devices is None else devices
    count = 0 if problems else math.prod(sizes.values())
    if count > len(devices):
        problems.append(f"expected {count} devices, found {len(devices)}")
    if problems:
        raise ValueError("mesh:\n  " + "\n  ".join(problems))
    # Branches meet once per step, tokens in every block: those are nearest together.
    order = [name for name in (GUIDANCE, FSDP, SEQUENCE) if name in sizes]
    shape = [sizes[name] for name in order]
    return Mesh(np.array(devices[:count]).reshape(shape), tuple(order))


def default_sizes(devices: int, heads: int, *, guided: bool) -> dict[str, int]:
    """How so many devices share one video: guidance first, then tokens.

    Args:
      devices: how many.
      heads: attention heads of the network.
      guided: whether there are two guidance branches.

    Raises:
      ValueError: the heads do not divide; says which numbers of devices would.
    """
    branches = BRANCHES if guided and devices % BRANCHES == 0 else 1
    tokens = devices // branches
    if devices < 1 or heads % tokens:
        divisors = [n for n in range(1, heads + 1) if heads % n == 0]
        fitting = {*divisors, *(BRANCHES * n for n in divisors if guided)}
        raise ValueError(
            f"devices: expected one of {', '.join(map(str, sorted(fitting)))} for a "
            f"network of {heads} heads, found {devices}"
        )
    return {GUIDANCE: branches, SEQUENCE: tokens}


def axes_of(
    mesh: Mesh, *, guided: bool, batched: bool, stacks: tuple[str, ...] = ()
) -> Axes:
    """What a mesh splits.

    Args:
      mesh: with axes among `AXIS_NAMES`.
      guided: whether there are two guidance branches.
      batched: whether those share one plan.
      stacks: names of the network's stacks of blocks.
    """
    large = {name: size for name, size in mesh.shape.items() if size > 1}
    branches = [name for name in (GUIDANCE,) if name in large]
    tokens = [name for name in (SEQUENCE,) if name in large]
    weights = [name for name in (FSDP,) if name in large]
    if weights:
        splits_branches = guided and not branches and large[FSDP] == BRANCHES
        (branches if splits_branches else tokens).append(FSDP)

    def count(names: list[str]) -> int:
        return math.prod(large[name] for name in names)

    return Axes(
        tokens=tuple(tokens),
        branches=tuple(branches),
        weights=tuple(weights),
        parts=count(tokens),
        branch_parts=count(branches),
        weight_parts=count(weights),
        stacks=stacks if weights else (),
        one_plan=batched,
    )


def name_problems(mesh: Any) -> list[str]:
    """What is wrong with a mesh for every network."""
    if not isinstance(mesh, Mesh):
        return [f"mesh: expected a jax.sharding.Mesh, found {type(mesh).__name__}"]
    unknown = [name for name in mesh.axis_names if name not in AXIS_NAMES]
    if not unknown:
        return []
    names, found = ", ".join(AXIS_NAMES), ", ".join(map(repr, unknown))
    return [f"mesh: expected axes among {names}, found {found}"]


def mesh_problems(mesh: Any, config: Any, *, guided: bool) -> list[str]:
    """What of a mesh does not fit a network and its guidance."""
    if problems := name_problems(mesh):
        return problems
    size = mesh.shape.get(GUIDANCE, 1)
    if size > 1 and not guided:
        problems.append(
            f"mesh: guidance={size}: expected 1 without two guidance branches (a "
            f"guidance scale above 1), found {size}"
        )
    elif size > BRANCHES:
        problems.append(f"mesh: guidance={size}: expected 1 or 2, found {size}")
    parts = axes_of(mesh, guided=guided, batched=False).parts
    heads = config.num_attention_heads
    if heads % parts:
        divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        problems.append(
            f"mesh: tokens over {parts} devices: expected a divisor of the network's "
            f"{heads} attention heads ({divisors}), found {parts}"
        )
    return problems


def automatic(mesh: Mesh) -> Mesh:
    """The same devices and names, with axes that `shard_map` alone speaks of.

    `jax.make_mesh` gives explicit axes, whose arrays every operation would have to
    say something about.
    """
    return Mesh(mesh.devices, mesh.axis_names)


def devices_for(batch: int) -> list[jax.Device]:
    """As many devices as divide a batch of training, in order: at least one."""
    found = jax.devices()
    return found[: max(n for n in range(1, len(found) + 1) if batch % n == 0)]


__all__ = [
    "AXIS_NAMES",
    "FSDP",
    "GUIDANCE",
    "SEQUENCE",
    "automatic",
    "axes_of",
    "default_sizes",
    "devices_for",
    "make_mesh",
    "mesh_problems",
    "name_problems",
]
