"""What a tuning method is: pure functions over explicit state, as in optax."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.nn.applied_weight import CorrectedWeight
from sixbit_jax.tuning.forward import Outputs
from sixbit_jax.tuning.trajectories import Batch

Groups = dict[str, Any]
"""Trainable pytrees by the name of their group; each has its own learning rate."""


class LossResult(NamedTuple):
    """What a loss gives back.

    Attributes:
      loss: scalar that is minimised.
      extra: the method's state for the next iteration (a queue, weights, counters).
      metrics: scalars to report, by name.
    """

    loss: Float[Array, ""]
    extra: Any
    metrics: dict[str, Array]


class Start(NamedTuple):
    """Where tuning begins.

    Attributes:
      trainable: pytrees of floats by group; only these get gradients.
      frozen: everything else that the student is made of.
      extra: first state of the loss; a pytree of arrays, () for none.
    """

    trainable: Groups
    frozen: Any
    extra: Any = ()


@dataclass(frozen=True)
class Method:
    """The pure functions of a method.

    Attributes:
      student: (trainable, frozen) -> parameters of the network, an `nnx.State` of the
        structure that the loop's graph takes; weights may be replaced by anything
        that `nn.linear` multiplies with.
      loss: (extra, student outputs, teacher outputs, batch) -> `LossResult`. The
        teacher's outputs carry no gradient.
      needs_features: run the teacher beside the student and hand both last residual
        streams to the loss; without it the recorded predictions are the teacher.
    """

    student: Callable[[Groups, Any], nnx.State]
    loss: Callable[[Any, Outputs, Outputs, Batch], LossResult]
    needs_features: bool = False


def weight_names(model: Any) -> tuple[str, ...]:
    """Dotted names of the weights of all sites, in the order of the state."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    names = (".".join(map(str, path)) for path, _ in flat)
    return tuple(name for name in names if model.weight_role(name) == "site")


def weights_of(params: nnx.State, names: tuple[str, ...]) -> dict[str, Array]:
    """Values of some parameters by dotted name.

    Raises:
      ValueError: there is no such parameter.
    """
    flat = {".".join(map(str, p)): v for p, v in nnx.to_flat_state(params)}
    missing = [name for name in names if name not in flat]
    if missing:
        raise ValueError(f"parameters: expected {missing}, found {sorted(flat)}")
    return {name: flat[name].get_value() for name in names}


def with_weights(params: nnx.State, weights: Mapping[str, Any]) -> nnx.State:
    """A copy of `params` with some values replaced, by dotted name.

    Raises:
      ValueError: there is no such parameter.
    """
    missing = set(weights)
    leaves = []
    for path, variable in nnx.to_flat_state(params):
        name = ".".join(map(str, path))
        if name in weights:
            missing.discard(name)
            variable = variable.replace(weights[name])
        leaves.append((path, variable))
    if missing:
        raise ValueError(f"parameters: found none named {sorted(missing)}")
    return nnx.from_flat_state(leaves)


def with_activation_bits(params: nnx.State, levels: Mapping[str, Any]) -> nnx.State:
    """Switches the activation quantization of corrected weights on.

    Args:
      params: parameters that hold `CorrectedWeight`s.
      levels: highest code per weight, 2^bits - 1.
    """
    changed = {}
    for name, weight in weights_of(params, tuple(levels)).items():
        if not isinstance(weight, CorrectedWeight):
            raise ValueError(
                f"{name}: expected a corrected weight, found {type(weight).__name__}"
            )
        lead = weight.shape[:-2]
        full = jnp.full(lead, levels[name], jnp.float32)
        changed[name] = CorrectedWeight(
            weight.weight,
            weight.down,
            weight.up,
            weight.factors,
            full,
            weight.text_rows,
        )
    return with_weights(params, changed)


def count(tree: Any) -> int:
    """Number of values in a pytree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


__all__ = [
    "Groups",
    "LossResult",
    "Method",
    "Start",
    "count",
    "weight_names",
    "weights_of",
    "with_activation_bits",
    "with_weights",
]
