"""The stochastic CogVideoX scheduler (diffusers' `CogVideoXDPMScheduler`)."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sixbit_jax.sampling.schedulers.cogvideox import CogVideoXSchedule


class DPMState(NamedTuple):
    """Coefficients of every step, float32 [num_steps] each, and the history.

    The clean sample is `clean_sample * x + clean_output * model_output`, its
    extrapolation `now * clean - before * last_clean`, the next sample
    `keep * x + add * extrapolated + spread * noise`.
    """

    clean_sample: Float[Array, "steps"]
    clean_output: Float[Array, "steps"]
    now: Float[Array, "steps"]
    before: Float[Array, "steps"]
    keep: Float[Array, "steps"]
    add: Float[Array, "steps"]
    spread: Float[Array, "steps"]
    last_clean: Float[Array, "*sample"]


@dataclass(frozen=True)
class CogVideoXDPM(CogVideoXSchedule):
    """SDE-DPM-Solver++(2M) (arXiv 2211.01095) on the CogVideoX noise schedule.

    With cumulative alphas a (this step) and b (where the step leads), half log-SNR
    l(a) = log(a / (1 - a)) / 2, h = l(b) - l(a), and r = (l(a) - l(a_last)) / h:
    D = (1 + 1 / 2r) x_0 - (1 / 2r) x_0_last;
    x' = sqrt((1 - b) / (1 - a)) exp(-h) x + (1 - exp(-2h)) sqrt(b) D
         + sqrt(1 - b) sqrt(1 - exp(-2h)) noise.
    The first step and the step to the clean sample take D = x_0.
    """

    class_name: ClassVar[str] = "CogVideoXDPMScheduler"

    @property
    def stochastic(self) -> bool:
        """True: `step` needs standard normal noise."""
        return True

    def init(self, num_steps: int, sample_shape: tuple[int, ...]) -> DPMState:
        """Coefficient tables of all steps and an empty history.

        Args:
          num_steps: number of denoising steps.
          sample_shape: shape of the samples that `step` will see.
        """
        alpha, after = self.alpha_pairs(num_steps)
        clean_sample, clean_output = self.clean_coefficients(alpha)
        # Half log-SNR is -inf where the SNR is zero and +inf at the clean sample; all
        # coefficients that are used have finite limits, which float64 infinities give.
        with np.errstate(divide="ignore", invalid="ignore"):
            level = (np.log(alpha) - np.log1p(-alpha)) / 2
            change = (np.log(after) - np.log1p(-after)) / 2 - level
            last_change = np.diff(level, prepend=-np.inf)
            before = change / (2 * last_change)
        first_order = self.previous_timesteps(num_steps) < 0
        first_order[0] = True
        before = np.where(first_order, 0.0, before)
        keep = np.sqrt((1 - after) / (1 - alpha)) * np.exp(-change)
        shrink = -np.expm1(-2 * change)
        tables = (
            clean_sample,
            clean_output,
            1 + before,
            before,
            keep,
            shrink * np.sqrt(after),
            np.sqrt(1 - after) * np.sqrt(shrink),
        )
        return DPMState(
            *(jnp.asarray(table, jnp.float32) for table in tables),
            last_clean=jnp.zeros(sample_shape, jnp.float32),
        )

    def step(
        self,
        state: DPMState,
        index: Int[Array, ""] | int,
        model_output: Float[Array, "*sample"],
        sample: Float[Array, "*sample"],
        noise: Float[Array, "*sample"] | None,
    ) -> tuple[Float[Array, "*sample"], DPMState]:
        """One denoising step.

        diffusers draws noise twice in second-order steps and uses the second draw;
        here each step is given the noise that it uses.

        Args:
          state: from `init` or the step before.
          index: which step, 0 to num_steps - 1; may be traced.
          model_output: the (guided) prediction.
          sample: the current sample.
          noise: standard normal noise of the sample's shape.

        Returns:
          The next sample, computed in float32, in the dtype of `sample`; the state
          with this step's clean sample as its history.

        Raises:
          ValueError: if noise is None.
        """
        if noise is None:
            raise ValueError(
                "CogVideoXDPM.step: expected standard normal noise of shape "
                f"{sample.shape}, found None"
            )
        x = sample.astype(jnp.float32)
        clean = state.clean_sample[index] * x
        clean += state.clean_output[index] * model_output.astype(jnp.float32)
        extrapolated = state.now[index] * clean - state.before[index] * state.last_clean
        after = state.keep[index] * x + state.add[index] * extrapolated
        after += state.spread[index] * noise.astype(jnp.float32)
        return after.astype(sample.dtype), state._replace(last_clean=clean)


__all__ = ["CogVideoXDPM", "DPMState"]
