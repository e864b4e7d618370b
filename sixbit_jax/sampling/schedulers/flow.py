"""What the flow-matching schedulers share: shifted sigmas and straight paths."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sixbit_jax.config_schema import number
from sixbit_jax.sampling.schedulers.given import check_count, check_given

MOST_STEPS = 100_000
# Of the sigmas; published ones are 1 to 12.
SHIFT = number(1e-3, 1e3)


def shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """s sigma / (1 + (s - 1) sigma): more steps at high noise for s > 1."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


@dataclass(frozen=True)
class FlowSchedule:
    """Straight paths from data to noise: x_t = (1 - sigma) x_0 + sigma noise.

    The model's timestep is `num_train_timesteps * sigma` and its prediction the
    velocity noise - x_0.

    Attributes:
      num_train_timesteps: the timestep of pure noise.
      given_sigmas: noise levels before each step, before they are shifted, instead of
        evenly spaced ones (`with_sigmas`).
      given_timesteps: the network's timesteps instead, which are not shifted
        (`with_timesteps`).
    """

    num_train_timesteps: int = 1000
    given_sigmas: tuple[float, ...] | None = field(default=None, kw_only=True)
    given_timesteps: tuple[float, ...] | None = field(default=None, kw_only=True)

    class_name: ClassVar[str]

    @property
    def prediction_type(self) -> str:
        """What the model predicts."""
        return "flow_prediction"

    @property
    def stochastic(self) -> bool:
        """False: `step` uses no noise."""
        return False

    @property
    def given_steps(self) -> int | None:
        """How many steps are given; None: as many as are asked for."""
        given = self.given_sigmas or self.given_timesteps
        return None if given is None else len(given)

    def with_sigmas(self, sigmas: Sequence[float]) -> Self:
        """This schedule at given noise levels, as models of few steps need them.

        Args:
          sigmas: before each step, falling, in (0, 1]; they are shifted as the evenly
            spaced ones are (diffusers' `set_timesteps(sigmas=...)` does the same). With
            a shift of 1 they are taken as they are.

        Raises:
          ValueError: for others, and beside given timesteps.
        """
        return replace(self, given_sigmas=tuple(sigmas))

    def with_timesteps(self, timesteps: Sequence[float]) -> Self:
        """This schedule at given timesteps of the network.

        Args:
          timesteps: falling, in (0, num_train_timesteps]; sigma is timestep /
            num_train_timesteps. They are not shifted. (diffusers shifts the sigmas that
            belong to them and not the timesteps, and warns.)

        Raises:
          ValueError: for others, and beside given sigmas.
        """
        return replace(self, given_timesteps=tuple(timesteps))

    def _check_given(self) -> None:
        """Checks and narrows what is given.

        Raises:
          ValueError: it is no schedule.
        """
        if self.given_sigmas is not None and self.given_timesteps is not None:
            raise ValueError("schedule: expected sigmas or timesteps, found both")
        largest = {"given_sigmas": 1.0, "given_timesteps": self.num_train_timesteps}
        for name, top in largest.items():
            values = check_given(name, getattr(self, name), top)
            object.__setattr__(self, name, values)

    def _given_levels(self, shift: float, dtype: type) -> np.ndarray | None:
        """The noise levels that are given, shifted in a dtype; [steps]."""
        if self.given_timesteps is not None:
            times = np.array(self.given_timesteps)
            return (times / self.num_train_timesteps).astype(dtype)
        if self.given_sigmas is None:
            return None
        return shifted(np.array(self.given_sigmas, dtype), shift)

    def _check_steps(self, num_steps: int) -> None:
        check_count(num_steps, self.given_steps)
        if not 1 <= num_steps <= self.num_train_timesteps:
            raise ValueError(
                f"num_steps: expected 1 to {self.num_train_timesteps} "
                f"(num_train_timesteps), found {num_steps}"
            )

    def add_noise(
        self,
        clean: Float[Array, "*batch_sample"],
        noise: Float[Array, "*batch_sample"],
        timestep: Int[Array | np.ndarray, "*batch"]
        | Float[Array | np.ndarray, "*batch"]
        | float,
    ) -> Float[Array, "*batch_sample"]:
        """The forward process at sigma = timestep / num_train_timesteps.

        Args:
          clean: clean samples, [*batch, ...].
          noise: standard normal noise of the same shape.
          timestep: in [0, num_train_timesteps], [*batch] or a scalar.

        Returns:
          Noisy samples, computed in float32, in the dtype of `clean`.
        """
        sigma = jnp.asarray(timestep, jnp.float32) / self.num_train_timesteps
        sigma = sigma.reshape(sigma.shape + (1,) * (clean.ndim - sigma.ndim))
        noisy = (1 - sigma) * clean.astype(jnp.float32)
        return (noisy + sigma * noise.astype(jnp.float32)).astype(clean.dtype)

    def velocity(
        self,
        clean: Float[Array, "*batch_sample"],
        noise: Float[Array, "*batch_sample"],
        timestep: Int[Array | np.ndarray, "*batch"]
        | Float[Array | np.ndarray, "*batch"]
        | float,
    ) -> Float[Array, "*batch_sample"]:
        """The training target, noise - x_0, which is the same at every timestep.

        Args:
          clean: clean samples.
          noise: standard normal noise of the same shape.
          timestep: ignored.

        Returns:
          Velocities, computed in float32, in the dtype of `clean`.
        """
        del timestep
        target = noise.astype(jnp.float32) - clean.astype(jnp.float32)
        return target.astype(clean.dtype)


__all__ = ["MOST_STEPS", "SHIFT", "FlowSchedule", "shifted"]
