"""What the sampler and the training recipes expect of a scheduler."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int

from sixbit_jax.config_schema import ConfigError, Schema
from sixbit_jax.reading.messages import brief

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

    @property
    def given_steps(self) -> int | None:
        """How many steps a given schedule has; None: as many as are asked for."""
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


def read_config[T](
    config: Any,
    make: Callable[..., T],
    *,
    class_name: str,
    schema: Schema,
    defaults: Mapping[str, Any],
) -> T:
    """Makes a scheduler of a diffusers `scheduler_config.json`.

    Args:
      config: the parsed file.
      make: the scheduler's class.
      class_name: the diffusers class that must be named by `_class_name`, if present.
      schema: what the file's fields may hold.
      defaults: diffusers' own, for options that the file leaves out; absent ones of
        which only one value is supported are checked as well.

    Raises:
      ConfigError: a ValueError that names another class, every field that diffusers'
        class does not have, and every value that is not supported.
    """
    found = config.get("_class_name", class_name) if isinstance(config, Mapping) else ""
    if found and found != class_name:
        raise ConfigError(
            "scheduler config",
            [f"expected _class_name {class_name!r}, found {brief(found)}"],
        )
    absent = {k: v for k, v in defaults.items() if k in schema.fields}
    if isinstance(config, Mapping):
        implied = {k: v for k, v in defaults.items() if k not in absent}
        config = {**implied, **config}
    return schema.read(config, make, defaults=absent)


__all__ = ["Scheduler", "SchedulerState", "read_config"]
