"""What the activations of every linear look like, summed over batches."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from sixbit_jax.models.network import PromptInputs, for_layer, layers_of
from sixbit_jax.nn.applied_weight import ObservedWeight
from sixbit_jax.nn.linear import Linear
from sixbit_jax.tuning.method import weight_names
from sixbit_jax.tuning.trajectories import Batch

Statistic = Callable[[str, Array], Any]


def observe(
    model: Any, batches: Iterable[Batch], statistic: Statistic, *, dtype: Any
) -> dict[str, Any]:
    """Sums a statistic of the activation that each site's linear reads.

    Args:
      model: the network, with any weights.
      batches: its inputs.
      statistic: (weight name, activation [batch, tokens, K]) -> pytree of arrays.
      dtype: compute dtype.

    Returns:
      The sums by weight name, every array with a leading layer axis.

    Raises:
      ValueError: no batches.
    """
    graph, params = nnx.split(model)
    run = jax.jit(partial(_observe, graph, weight_names(model), statistic, dtype))
    total = None
    for batch in batches:
        found = run(params, batch)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    if total is None:
        raise ValueError("observe: expected at least one batch, found none")
    return total


def _observe(graph, names, statistic, dtype, params, batch: Batch) -> dict[str, Any]:
    model: Any = nnx.merge(graph, params)
    prompt = model.prepare_prompt(PromptInputs(jnp.asarray(batch.text)), dtype=dtype)
    x, conditioning = model.embed(
        batch.latents.astype(dtype), prompt, batch.timestep.astype(jnp.float32)
    )
    observed: dict[str, Any] = {}
    for stack, blocks in model.blocks_by_stack().items():
        graph, stacked = nnx.split(blocks)
        body = partial(_observe_block, graph, stack, names, statistic, conditioning)
        layers = (stacked, layers_of(conditioning, stack))
        x, found = jax.lax.scan(body, x, layers)
        observed.update(found)
    return observed


def _observe_block(
    graph, stack, names, statistic, conditioning, x: Array, layer
) -> tuple[Array, dict[str, Any]]:
    params, context = layer
    block = nnx.merge(graph, params)
    found: dict[str, Any] = {}
    for path, linear in _linears(block):
        name = f"{stack}.{path}.weight"
        if name not in names:
            continue

        def note(activation: Array, name: str = name) -> None:
            found[name] = statistic(name, activation)

        value = ObservedWeight(linear.weight.get_value(), note)
        linear.weight = nnx.Param(value)  # pyrefly: ignore[bad-assignment]
    y, _ = block(x, for_layer(conditioning, context))
    return y, found


def _linears(block: nnx.Module) -> list[tuple[str, Linear]]:
    return [
        (".".join(map(str, path)), module)
        for path, module in nnx.iter_modules(block)
        if isinstance(module, Linear)
    ]


__all__ = ["observe"]
