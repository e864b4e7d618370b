"""Euler steps along the flow (diffusers' `FlowMatchEulerDiscreteScheduler`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sixbit_jax.config_schema import Schema, choice, fixed, integer, number
from sixbit_jax.sampling.schedulers.base import read_config
from sixbit_jax.sampling.schedulers.flow import (
    MOST_STEPS,
    SHIFT,
    FlowSchedule,
    shifted,
)

_SUPPORTED = {
    "use_dynamic_shifting": False,
    "invert_sigmas": False,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "stochastic_sampling": False,
}
SCHEMA = Schema(
    "FlowMatchEuler config",
    {
        "num_train_timesteps": integer(1, MOST_STEPS),
        "shift": SHIFT,
        "spacing": choice("scheduler", "even"),
    },
    {name: fixed(value) for name, value in _SUPPORTED.items()}
    # Read by diffusers only where dynamic shifting is on.
    | {
        "base_shift": number(0, 1e3),
        "max_shift": number(0, 1e3),
        "base_image_seq_len": integer(1, 2**20),
        "max_image_seq_len": integer(1, 2**20),
        "time_shift_type": choice("exponential", "linear"),
    },
)


class FlowMatchEulerState(NamedTuple):
    """How far each step goes in sigma, float32 [num_steps]; never changes."""

    change: Float[Array, "steps"]


@dataclass(frozen=True)
class FlowMatchEuler(FlowSchedule):
    """x' = x + (sigma' - sigma) v (arXiv 2210.02747 with a shifted schedule).

    Attributes:
      shift: the shift of the sigmas; 3.0 or 5.0 for Wan, 7.0 for HunyuanVideo.
      spacing: of the sigmas before the shift: "scheduler" is the class's own, "even"
        is 1, 1 - 1/n, ..., 1/n, which the pipeline of HunyuanVideo asks for. No file of
        diffusers says it.

    >>> from sixbit_jax import FlowMatchEuler
    >>> FlowMatchEuler(shift=3.0).timesteps(4).round().tolist()
    [1000.0, 858.0, 602.0, 9.0]
    """

    shift: float = 1.0
    spacing: Literal["scheduler", "even"] = "scheduler"

    class_name: ClassVar[str] = "FlowMatchEulerDiscreteScheduler"
    schema: ClassVar[Schema] = SCHEMA

    def __post_init__(self) -> None:
        self.schema.check(self)
        self._check_given()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read a diffusers `scheduler_config.json`.

        Args:
          config: the parsed file.

        Raises:
          ConfigError: a ValueError, for another class, unknown options and
            unsupported values; lists all of them.
        """
        return read_config(
            config,
            cls,
            class_name=cls.class_name,
            schema=cls.schema,
            defaults={
                "num_train_timesteps": 1000,
                "shift": 1.0,
                "spacing": "scheduler",
            }
            | _SUPPORTED,
        )

    def sigmas(self, num_steps: int) -> np.ndarray:
        """Noise level before each step, and 0 after the last; float32 [num_steps + 1].

        diffusers shifts the lowest level twice: once in its table of all training
        timesteps, whose end it takes, and once in the schedule made from it.
        """
        self._check_steps(num_steps)
        given = self._given_levels(self.shift, np.float32)
        if given is not None:
            return np.append(given, np.float32(0))
        if self.spacing == "even":
            even = np.linspace(1.0, 0.0, num_steps + 1)[:-1].astype(np.float32)
            return np.append(shifted(even, self.shift), np.float32(0))
        total = self.num_train_timesteps
        lowest = shifted(np.array([1 / total], np.float32), self.shift)
        times = np.linspace(float(total), float(lowest[0]) * total, num_steps)
        levels = shifted(times / total, self.shift).astype(np.float32)
        return np.append(levels, np.float32(0))

    def timesteps(self, num_steps: int) -> np.ndarray:
        """The model's timesteps in the order they run, float32 [num_steps].

        Raises:
          ValueError: for a number of steps outside of 1 to num_train_timesteps.
        """
        return self.sigmas(num_steps)[:-1] * np.float32(self.num_train_timesteps)

    def init(
        self, num_steps: int, sample_shape: tuple[int, ...]
    ) -> FlowMatchEulerState:
        """Step lengths of all steps.

        Args:
          num_steps: number of denoising steps.
          sample_shape: unused, Euler has no history.
        """
        del sample_shape
        return FlowMatchEulerState(jnp.asarray(np.diff(self.sigmas(num_steps))))

    def step(
        self,
        state: FlowMatchEulerState,
        index: Int[Array, ""] | int,
        model_output: Float[Array, "*sample"],
        sample: Float[Array, "*sample"],
        noise: Float[Array, "*sample"] | None = None,
    ) -> tuple[Float[Array, "*sample"], FlowMatchEulerState]:
        """One denoising step.

        Args:
          state: from `init`.
          index: which step, 0 to num_steps - 1; may be traced.
          model_output: the (guided) velocity.
          sample: the current sample.
          noise: ignored.

        Returns:
          The next sample, computed in float32, in the dtype of `sample`; the state.
        """
        del noise
        x = sample.astype(jnp.float32)
        after = x + state.change[index] * model_output.astype(jnp.float32)
        return after.astype(sample.dtype), state


__all__ = ["SCHEMA", "FlowMatchEuler", "FlowMatchEulerState"]
