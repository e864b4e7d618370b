"""The sampling program on several devices: inside one `jax.shard_map`.

What the axes of a mesh split is said in `sixbit_jax.meshes`.
"""

import dataclasses
from collections.abc import Callable
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
from sixbit_jax.sampling.trace import SampleResult

_EVERYWHERE = PartitionSpec()


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


def spread_problems(model: Any, *others: Any) -> list[str]:
    """What is spread over devices where no mesh is given, in one message.

    Kernels cannot be partitioned: outside of a `shard_map`, arrays on several devices
    would fail deep inside of them.
    """
    options = [leaf for other in others for leaf in _arrays(other)]
    leaves = [*jax.tree.leaves(nnx.state(model)), *options]
    found = next((s for s in map(_spread, leaves) if s is not None), None)
    if found is None:
        return []
    return [
        f"mesh: expected arrays of one device, found some with {found}; give "
        "`sample(mesh=...)` the devices that share the run, or call it inside "
        "`jax.shard_map`"
    ]


def _arrays(value: Any) -> list[Any]:
    fields = vars(value).values() if dataclasses.is_dataclass(value) else (value,)
    return [field for field in fields if isinstance(field, jax.Array)]


def _spread(leaf: Any) -> str | None:
    """The sharding of what is on several devices."""
    if isinstance(leaf, jax.core.Tracer):
        # Of explicit axes alone a traced array knows where it is.
        sharding = jax.typeof(leaf).sharding
        split = any(part is not None for part in sharding.spec)
        return str(sharding.spec) if split else None
    if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1:
        return None
    return str(leaf.sharding)


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
    split: dict[str, Any] = {
        name: None if getattr(inputs, name) is None else spec
        for name in ("text", "mask", "pooled")
    }
    if not axes.one_plan:
        split["policy_state"] = jax.tree.map(lambda _: spec, inputs.policy_state)
    return everywhere._replace(**split)


def _with_all_branches(result: SampleResult, axes: Axes) -> SampleResult:
    """The result with the trace of all branches, on every device."""
    if not axes.branches or axes.one_plan:
        return result
    shared = ("timestep", "output_change")
    gathered = {
        name: jax.lax.all_gather(value, axes.branches, axis=1, tiled=True)
        for name, value in result.trace._asdict().items()
        if name not in shared
    }
    return result._replace(trace=result.trace._replace(**gathered))


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
        lambda params, inputs: _with_all_branches(
            run(own, graph, params, inputs), axes
        ),
        mesh=mesh,
        in_specs=(parameter_specs(params, axes), input_specs(inputs, axes)),
        out_specs=_EVERYWHERE,
        # Sums make equal what the checks would have to see made equal.
        check_vma=False,
    )
    return mapped(params, inputs)


def compiler_options(mesh: Mesh | None) -> dict[str, Any] | None:
    """How XLA compiles for a mesh: on GPUs, exchanges run beside arithmetic."""
    if mesh is None or mesh.devices.flat[0].platform != "gpu":
        return None
    return {"xla_gpu_enable_latency_hiding_scheduler": True}


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
        sharding = NamedSharding(mesh, spec)
        if isinstance(x, jax.core.Tracer):
            return x
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        return _put_parts(x, sharding)

    return jax.tree.map(one, tree, specs)


def _put_parts(x: Any, sharding: NamedSharding) -> Any:
    """This process's parts of what every process has, or has in place already."""
    if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
        return x
    if jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.prng_key):
        data = _put_parts(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    whole = np.asarray(x)
    return jax.make_array_from_callback(
        whole.shape, sharding, lambda where: whole[where]
    )


__all__ = [
    "anywhere",
    "compiler_options",
    "input_specs",
    "on_mesh",
    "parameter_specs",
    "placed",
    "placed_for",
]
