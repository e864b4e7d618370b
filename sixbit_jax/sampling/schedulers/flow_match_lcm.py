"""Steps to the clean sample and back (diffusers' `FlowMatchLCMScheduler`)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sixbit_jax.config_schema import Schema, boolean, fixed
from sixbit_jax.sampling.schedulers.flow_match_euler import SCHEMA, FlowMatchEuler


class FlowMatchLCMState(NamedTuple):
    """Noise level before each step, and 0; float32 [num_steps + 1], never changes."""

    sigma: Float[Array, "levels"]


@dataclass(frozen=True)
class FlowMatchLCM(FlowMatchEuler):
    """x_0 = x - sigma v, then x' = (1 - sigma') x_0 + sigma' noise, with new noise.

    The rule of consistency models (arXiv 2310.04378) on straight paths, which models
    that were distilled to few steps by distribution matching are trained for: every
    step predicts the clean sample and takes it back to the next noise level. Also what
    diffusers' `FlowMatchEulerDiscreteScheduler` does with `stochastic_sampling`.

    Attributes:
      shift: the shift of the sigmas; 5.0 for most Wan models of four steps.
    """

    class_name: ClassVar[str] = "FlowMatchLCMScheduler"
    # Frames of growing size are another kind of sampling.
    schema: ClassVar[Schema] = replace(
        SCHEMA,
        title="FlowMatchLCM config",
        others={
            **SCHEMA.others,
            # Read by nothing in diffusers' class.
            "stochastic_sampling": boolean(),
            "scale_factors": fixed(None),
            "upscale_mode": fixed("bicubic"),
        },
    )

    @property
    def stochastic(self) -> bool:
        """True: `step` needs standard normal noise."""
        return True

    def init(self, num_steps: int, sample_shape: tuple[int, ...]) -> Any:
        """Noise levels of all steps.

        Args:
          num_steps: number of denoising steps.
          sample_shape: unused, there is no history.
        """
        del sample_shape
        return FlowMatchLCMState(jnp.asarray(self.sigmas(num_steps)))

    def step(
        self,
        state: Any,
        index: Int[Array, ""] | int,
        model_output: Float[Array, "*sample"],
        sample: Float[Array, "*sample"],
        noise: Float[Array, "*sample"] | None = None,
    ) -> tuple[Float[Array, "*sample"], Any]:
        """One denoising step; the last one gives the clean sample.

        Args:
          state: from `init`.
          index: which step, 0 to num_steps - 1; may be traced.
          model_output: the (guided) velocity.
          sample: the current sample.
          noise: standard normal noise of the sample's shape.

        Returns:
          The next sample, computed in float32, in the dtype of `sample`; the state.

        Raises:
          ValueError: if noise is None.
        """
        if noise is None:
            raise ValueError(
                "FlowMatchLCM.step: expected standard normal noise of shape "
                f"{sample.shape}, found None"
            )
        x, after = sample.astype(jnp.float32), state.sigma[index + 1]
        clean = x - state.sigma[index] * model_output.astype(jnp.float32)
        noisy = (1 - after) * clean + after * noise.astype(jnp.float32)
        return noisy.astype(sample.dtype), state


__all__ = ["FlowMatchLCM", "FlowMatchLCMState"]
