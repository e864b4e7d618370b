"""What the sampler and the training recipes expect of a scheduler."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int

SchedulerState = Any


@runtime_checkable
class Scheduler(Protocol):
    """Pure functions over an explicit state; itself frozen, hashable and static.

    `timesteps` and `init` run outside of the compiled program and compute in float64;
    `step`, `add_noise` and `velocity` are traceable and compute in float32.
    """

    @property
    def prediction_type(self) -> str:
        """What the model predicts, e.g. "v_prediction"."""
        ...

    @property
    def stochastic(self) -> bool:
        """Whether `step` consumes noise."""
        ...

    @property
    def num_train_timesteps(self) -> int:
        """Timesteps are integers in [0, num_train_timesteps)."""
        ...

    def timesteps(self, num_steps: int) -> np.ndarray:
        """The model's timesteps in the order they run, int64 [num_steps]."""
        ...

    def init(self, num_steps: int, sample_shape: tuple[int, ...]) -> SchedulerState:
        """State before the first step: float32 coefficient tables and history."""
        ...

    def step(
        self,
        state: SchedulerState,
        index: Int[Array, ""] | int,
        model_output: Float[Array, "*sample"],
        sample: Float[Array, "*sample"],
        noise: Float[Array, "*sample"] | None,
    ) -> tuple[Float[Array, "*sample"], SchedulerState]:
        """Sample of the next step; `noise` may be None if not `stochastic`."""
        ...

    def add_noise(
        self,
        clean: Float[Array, "*batch_sample"],
        noise: Float[Array, "*batch_sample"],
        timestep: Int[Array | np.ndarray, "*batch"] | int,
    ) -> Float[Array, "*batch_sample"]:
        """The sample at a timestep of the forward process."""
        ...

    def velocity(
        self,
        clean: Float[Array, "*batch_sample"],
        noise: Float[Array, "*batch_sample"],
        timestep: Int[Array | np.ndarray, "*batch"] | int,
    ) -> Float[Array, "*batch_sample"]:
        """The v-prediction target at a timestep."""
        ...


def options_from_config(
    config: Mapping[str, Any],
    *,
    class_name: str,
    defaults: Mapping[str, Any],
    without_effect: Mapping[str, Any],
) -> dict[str, Any]:
    """Check a scheduler's config.json and fill what it leaves out.

    Args:
      config: the parsed file.
      class_name: the diffusers class that must be named by `_class_name`, if present.
      defaults: option -> diffusers' default, for the options that are read.
      without_effect: options that diffusers' class accepts and never uses.

    Returns:
      option -> value for every key of `defaults`.

    Raises:
      ValueError: for another class, or for keys that the class does not have.
    """
    found = config.get("_class_name", class_name)
    if found != class_name:
        raise ValueError(
            f"scheduler config: expected _class_name {class_name!r}, found {found!r}"
        )
    unknown = sorted(
        key
        for key in config
        if key[0] != "_" and key not in defaults and key not in without_effect
    )
    if unknown:
        raise ValueError(
            f"scheduler config of {class_name}: unknown options {unknown}; known are "
            f"{sorted([*defaults, *without_effect])}"
        )
    return {key: config.get(key, default) for key, default in defaults.items()}


__all__ = ["Scheduler", "SchedulerState", "options_from_config"]
