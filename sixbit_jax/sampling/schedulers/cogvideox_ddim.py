"""The deterministic CogVideoX scheduler (diffusers' `CogVideoXDDIMScheduler`)."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sixbit_jax.sampling.schedulers.cogvideox import CogVideoXSchedule


class DDIMState(NamedTuple):
    """Coefficients of every step, float32 [num_steps] each; never changes.

    The clean sample is `clean_sample * x + clean_output * model_output`, the next
    sample `keep * x + add * clean`.
    """

    clean_sample: Float[Array, "steps"]
    clean_output: Float[Array, "steps"]
    keep: Float[Array, "steps"]
    add: Float[Array, "steps"]


@dataclass(frozen=True)
class CogVideoXDDIM(CogVideoXSchedule):
    """DDIM (arXiv 2010.02502, eta 0) on the CogVideoX noise schedule.

    With cumulative alphas a (this step) and b (where the step leads):
    k = sqrt((1 - b) / (1 - a)); x' = k x + (sqrt(b) - sqrt(a) k) x_0.

    >>> from sixbit_jax import CogVideoXDDIM
    >>> CogVideoXDDIM().timesteps(4).tolist()
    [999, 749, 499, 249]
    """

    class_name: ClassVar[str] = "CogVideoXDDIMScheduler"

    @property
    def stochastic(self) -> bool:
        """False: `step` uses no noise."""
        return False

    def init(self, num_steps: int, sample_shape: tuple[int, ...]) -> DDIMState:
        """Coefficient tables of all steps.

        Args:
          num_steps: number of denoising steps.
          sample_shape: unused, DDIM has no history.
        """
        del sample_shape
        alpha, after = self.alpha_pairs(num_steps)
        clean_sample, clean_output = self.clean_coefficients(alpha)
        keep = np.sqrt((1 - after) / (1 - alpha))
        add = np.sqrt(after) - np.sqrt(alpha) * keep
        return DDIMState(
            *(
                jnp.asarray(table, jnp.float32)
                for table in (clean_sample, clean_output, keep, add)
            )
        )

    def step(
        self,
        state: DDIMState,
        index: Int[Array, ""] | int,
        model_output: Float[Array, "*sample"],
        sample: Float[Array, "*sample"],
        noise: Float[Array, "*sample"] | None = None,
    ) -> tuple[Float[Array, "*sample"], DDIMState]:
        """One denoising step.

        Args:
          state: from `init`.
          index: which step, 0 to num_steps - 1; may be traced.
          model_output: the (guided) prediction.
          sample: the current sample.
          noise: ignored.

        Returns:
          The next sample, computed in float32, in the dtype of `sample`; the state.
        """
        del noise
        x = sample.astype(jnp.float32)
        clean = state.clean_sample[index] * x
        clean += state.clean_output[index] * model_output.astype(jnp.float32)
        after = state.keep[index] * x + state.add[index] * clean
        return after.astype(sample.dtype), state


__all__ = ["CogVideoXDDIM", "DDIMState"]
