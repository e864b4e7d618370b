"""Classifier-free guidance, and the scale that changes with the timestep."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def guide(
    conditional: Float[Array, "*sample"],
    unconditional: Float[Array, "*sample"],
    scale: Float[Array, ""] | float,
) -> Float[Array, "*sample"]:
    """Classifier-free guidance: u + scale (c - u) (arXiv 2207.12598).

    Args:
      conditional: prediction with the prompt.
      unconditional: prediction with the negative prompt.
      scale: guidance scale; 1 gives the conditional prediction.

    Returns:
      The guided prediction, float32.
    """
    base = unconditional.astype(jnp.float32)
    return base + scale * (conditional.astype(jnp.float32) - base)


def dynamic_guidance_scale(
    scale: Float[Array, ""] | float,
    timesteps: Int[np.ndarray, "steps"],
    num_steps: int,
) -> Float[Array, "steps"]:
    """The guidance scale of each step, as diffusers' `use_dynamic_cfg` has it.

    1 + scale (1 - cos(pi ((n - t) / n)^5)) / 2, with n the number of denoising steps
    and t the model's timestep. The two have different units (n is 50 where t is 999),
    so that the cosine turns many times in early steps instead of rising once; the
    published pipelines sample like this, and so it is kept. Its argument reaches
    millions of turns: it is computed here, in float64, and not in the compiled program.

    Args:
      scale: guidance scale; may be traced.
      timesteps: the scheduler's timesteps in the order they run, concrete.
      num_steps: number of denoising steps.

    Returns:
      float32 [steps], between 1 and 1 + scale.
    """
    progress = (num_steps - np.asarray(timesteps, np.float64)) / num_steps
    weight = (1 - np.cos(np.pi * progress**5.0)) / 2
    return 1 + scale * jnp.asarray(weight, jnp.float32)


__all__ = ["dynamic_guidance_scale", "guide"]
