"""Two networks in one run: one for high noise, one for low (Wan2.2-A14B).

The step at which they change is known before the run, so that the compiled program has
two scans over steps, one after the other. A conditional in every step would compile as
much, keep both networks' keys and values of the prompt alive at once, and carry one
network's delta cache into the other.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from sixbit_jax.sampling.schedulers.base import Scheduler


@dataclass(frozen=True, eq=False)
class LowNoise:
    """The network that takes over below a noise level.

    Attributes:
      model: a model of the same structure as the first, weights stored the same way.
      boundary: it runs at timesteps below boundary * num_train_timesteps (Wan2.2-A14B:
        0.875 for text to video, 0.9 for image to video).
      guidance_scale: classifier-free guidance from there on; None is the first's.
    """

    model: Any
    boundary: float = 0.875
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.boundary, bool) or not 0 <= self.boundary <= 1:
            raise ValueError(
                f"LowNoise: boundary: expected 0 to 1, found {self.boundary}"
            )


class ModelPair(NamedTuple):
    """The parameters of both networks, each used where it lies."""

    high: nnx.State
    low: nnx.State


def switch_step(scheduler: Scheduler, num_steps: int, boundary: float) -> int:
    """The first step that the second network runs; `num_steps` if it runs none.

    Raises:
      ValueError: if the timesteps do not fall.
    """
    timesteps = np.asarray(scheduler.timesteps(num_steps))
    high = timesteps >= boundary * scheduler.num_train_timesteps
    if np.any(high[1:] & ~high[:-1]):
        raise ValueError(f"timesteps: expected falling ones, found {timesteps}")
    return int(high.sum())


def split_pair(first: Any, second: Any) -> tuple[nnx.GraphDef, ModelPair]:
    """`nnx.split` of two networks of one structure.

    Raises:
      ValueError: if configuration or the way of storing weights differ.
    """
    graph, high = nnx.split(first)
    other, low = nnx.split(second)
    if first.config != second.config:
        raise ValueError(
            f"low_noise: expected the first network's configuration {first.config}, "
            f"found {second.config}"
        )
    ours, theirs = (_stored(state) for state in (high, low))
    if graph != other or ours != theirs:
        differing = sorted(n for n in ours | theirs if ours.get(n) != theirs.get(n))
        shown = ", ".join(differing[:4])
        raise ValueError(
            "low_noise: expected weights stored as those of the first network, found "
            f"others: {shown} ({len(differing)} parameters)"
        )
    return graph, ModelPair(high, low)


def _stored(state: nnx.State) -> dict[str, Any]:
    """How every parameter is stored: its type, structure, shapes and dtypes."""
    return {
        ".".join(map(str, path)): (
            jax.tree.structure(variable.get_value()),
            [(x.shape, x.dtype) for x in jax.tree.leaves(variable.get_value())],
        )
        for path, variable in nnx.to_flat_state(state)
    }


__all__ = ["LowNoise", "ModelPair", "split_pair", "switch_step"]
