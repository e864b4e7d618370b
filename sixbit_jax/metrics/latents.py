"""How far latents moved away from those of another configuration."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def latent_drift(
    latents: Float[Array | np.ndarray, "*batch frames channels height width"],
    reference: Float[Array | np.ndarray, "*batch frames channels height width"],
) -> Float[Array, "*batch"]:
    """Relative L2 distance of latents: ||x - r|| / ||r||.

    Args:
      latents: latents of the configuration under test.
      reference: latents of the same seed and prompt in full precision, same shape.

    Returns:
      One value per sample, float32; 0 for equal latents.

    Raises:
      ValueError: for different shapes or too few axes.
    """
    latents, reference = jnp.asarray(latents), jnp.asarray(reference)
    if latents.shape != reference.shape or latents.ndim < 4:
        raise ValueError(
            "latent_drift: expected two arrays [..., frames, channels, height, width] "
            f"of one shape, found {latents.shape} and {reference.shape}"
        )
    reference = reference.astype(jnp.float32)
    sample = (-4, -3, -2, -1)
    moved = jnp.sum(jnp.square(latents.astype(jnp.float32) - reference), axis=sample)
    size = jnp.sum(jnp.square(reference), axis=sample)
    # Zero against zero did not move; 0 / 0 would say NaN.
    return jnp.sqrt(jnp.where(moved == 0, 0.0, moved / size))


__all__ = ["latent_drift"]
