"""What the flow-matching schedulers share: shifted sigmas and straight paths."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sixbit_jax.config_schema import number

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
    """

    num_train_timesteps: int = 1000

    class_name: ClassVar[str]

    @property
    def prediction_type(self) -> str:
        """What the model predicts."""
        return "flow_prediction"

    @property
    def stochastic(self) -> bool:
        """False: `step` uses no noise."""
        return False

    def _check_steps(self, num_steps: int) -> None:
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
