"""One run on several devices: what a mesh splits, and the program inside `shard_map`.

The whole sampling program runs inside one `jax.shard_map`. The mesh has axes of these
names, any of them:

* guidance: one branch of classifier-free guidance on each half; latents are exchanged
  once per step.
* sequence: tokens are split, attention exchanges them for heads (`nn.axes`).
* fsdp: the blocks' weights are split, and gathered a block ahead. These devices share
  the work as well: the two guidance branches, where they are two and no other axis
  splits those; otherwise tokens.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool

from sixbit_jax.nn.axes import MATRIX, Axes
from sixbit_jax.sampling.program import Inputs, Program
from sixbit_jax.sampling.trace import SampleResult, Trace

GUIDANCE, SEQUENCE, FSDP = "guidance", "sequence", "fsdp"
AXIS_NAMES = (GUIDANCE, SEQUENCE, FSDP)
BRANCHES = 2

_EVERYWHERE = PartitionSpec()


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
    if not problems:
        devices = jax.devices() if devices is None else devices
        count = math.prod(sizes.values())
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


def mesh_problems(mesh: Any, config: Any, *, guided: bool) -> list[str]:
    """What of a mesh does not fit a network and its guidance."""
    if not isinstance(mesh, Mesh):
        return [f"mesh: expected a jax.sharding.Mesh, found {type(mesh).__name__}"]
    names = ", ".join(AXIS_NAMES)
    unknown = [name for name in mesh.axis_names if name not in AXIS_NAMES]
    if unknown:
        found = ", ".join(map(repr, unknown))
        return [f"mesh: expected axes among {names}, found {found}"]
    problems, size = [], mesh.shape.get(GUIDANCE, 1)
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


def anywhere(stop: Bool[Array, ""], mesh: Mesh | None) -> Bool[Array, ""]:
    """Whether any device says so: all of them leave a loop together."""
    if mesh is None:
        return stop
    return jax.lax.pmax(stop.astype(jnp.int32), mesh.axis_names).astype(jnp.bool_)


def parameter_specs(params: Any, axes: Axes) -> Any:
    """Which axis of every parameter is split, as `PartitionSpec`s.

    Args:
      params: of a network, or of a pair.
      axes: of the mesh.
    """
    if not axes.weights:
        return jax.tree.map(lambda _: _EVERYWHERE, params)
    by_rows = PartitionSpec(None, axes.weights)

    def one(path: Any, leaf: Any) -> PartitionSpec:
        return by_rows if is_split(path, leaf, axes) else _EVERYWHERE

    return jax.tree_util.tree_map_with_path(one, params)


def is_split(path: Any, leaf: Any, axes: Axes) -> bool:
    """Whether a parameter is split over `fsdp`: the blocks' matrices, by rows.

    Args:
      path: of `jax.tree_util`.
      leaf: its array.
      axes: of the mesh.
    """
    names = {key.key for key in path if isinstance(key, jax.tree_util.DictKey)}
    return bool(names & {*axes.stacks}) and leaf.ndim == 1 + MATRIX


def split_problems(params: Any, axes: Axes) -> list[str]:
    """Matrices whose rows do not divide."""
    wrong = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        whole = leaf.shape[1:2] == () or not leaf.shape[1] % axes.weight_parts
        if is_split(path, leaf, axes) and not whole:
            wrong.append(f"{jax.tree_util.keystr(path)} {list(leaf.shape)}")
    if not wrong:
        return []
    return [
        f"mesh: fsdp={axes.weight_parts}: expected rows that divide, found "
        + ", ".join(wrong[:4])
    ]


def input_specs(inputs: Inputs, axes: Axes) -> Inputs:
    """Which axis of every input is split: by branch, where branches are."""
    everywhere: Inputs = jax.tree.map(lambda _: _EVERYWHERE, inputs)
    if not axes.branches:
        return everywhere
    # Batched guidance has both branches among the rows of one.
    spec = PartitionSpec(*([None] if axes.one_plan else []), axes.branches)
    split = {
        name: None if getattr(inputs, name) is None else spec
        for name in ("text", "mask", "pooled")
    }
    if not axes.one_plan:
        split["policy_state"] = jax.tree.map(lambda _: spec, inputs.policy_state)
    return everywhere._replace(**split)


def result_specs(axes: Axes, *, watched: bool) -> SampleResult:
    """Which axis of the result is split: of the trace, branches."""
    split = axes.branches and not axes.one_plan
    by_step = PartitionSpec(None, axes.branches) if split else _EVERYWHERE
    shared = ("timestep", "output_change")
    trace = Trace(**{n: _EVERYWHERE if n in shared else by_step for n in Trace._fields})
    return SampleResult(_EVERYWHERE, trace, _EVERYWHERE if watched else None)


def on_mesh(
    run: Callable[..., SampleResult],
    program: Program,
    graph: nnx.GraphDef,
    params: Any,
    inputs: Inputs,
) -> SampleResult:
    """The program, on all devices of its mesh.

    Args:
      run: the program of one device.
      program, graph, params, inputs: see `run_program`.
    """
    axes, mesh = program.site.axes, program.mesh
    assert mesh is not None
    branches = program.branches
    if not axes.one_plan:
        branches //= axes.branch_parts
    own = replace(program, branches=branches)
    mapped = jax.shard_map(
        lambda params, inputs: run(own, graph, params, inputs),
        mesh=mesh,
        in_specs=(parameter_specs(params, axes), input_specs(inputs, axes)),
        out_specs=result_specs(axes, watched=program.watched),
        # Sums make equal what the checks would have to see made equal.
        check_vma=False,
    )
    return mapped(params, inputs)


def automatic(mesh: Mesh) -> Mesh:
    """The same devices and names, with axes that `shard_map` alone speaks of.

    `jax.make_mesh` gives explicit axes, whose arrays every operation would have to
    say something about.
    """
    return Mesh(mesh.devices, mesh.axis_names)


def placed_for(program: Program, params: Any, inputs: Inputs) -> tuple[Any, Inputs]:
    """Parameters and inputs where the program wants them; what is traced stays."""
    axes, mesh = program.site.axes, program.mesh
    assert mesh is not None
    return (
        placed(params, mesh, parameter_specs(params, axes)),
        placed(inputs, mesh, input_specs(inputs, axes)),
    )


def placed(tree: Any, mesh: Mesh, specs: Any) -> Any:
    """Arrays where the program wants them; those that are there already stay.

    In a run of several processes every process has the same values, and puts its own
    devices' parts there.
    """

    def one(x: Any, spec: PartitionSpec) -> Any:
        if isinstance(x, jax.core.Tracer | jax.ShapeDtypeStruct):
            return x
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(one, tree, specs)


__all__ = [
    "AXIS_NAMES",
    "anywhere",
    "axes_of",
    "default_sizes",
    "input_specs",
    "make_mesh",
    "mesh_problems",
    "on_mesh",
    "parameter_specs",
    "placed",
    "result_specs",
]
