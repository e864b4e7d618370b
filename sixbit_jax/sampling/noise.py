"""Where a run's random numbers come from, so that they can be drawn again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LARGEST_SEED = 2**64 - 1


def seed_problem(seed: Any) -> str | None:
    """What is wrong with a seed, or None; traced seeds pass."""
    if isinstance(seed, jax.Array):
        integer = jnp.issubdtype(seed.dtype, jnp.integer) and seed.ndim == 0
        return None if integer else f"seed: expected an integer, found {seed.aval}"
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        return f"seed: expected an integer, found {seed!r}"
    if not 0 <= seed <= LARGEST_SEED:
        return f"seed: expected 0 to {LARGEST_SEED}, found {seed}"
    return None


def seed_key(seed: Any) -> Array:
    """The key of a seed.

    Every seed of 64 bits has a key of its own: the upper half is folded into the key
    that the lower half makes.
    """
    if isinstance(seed, jax.Array):
        return jax.random.key(seed)
    high, low = divmod(int(seed), 2**32)
    key = jax.random.key(np.uint32(low))
    return jax.random.fold_in(key, np.uint32(high)) if high else key


def run_keys(seed: Any) -> tuple[Array, Array]:
    """The keys of the initial noise and of the steps' noise."""
    first, steps = jax.random.split(seed_key(seed))
    return first, steps


def draw(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Standard normal float32 noise."""
    return jax.random.normal(key, shape, jnp.float32)


def draw_step(key: Array, index: Array | int, shape: tuple[int, ...]) -> Array:
    """The noise that a stochastic scheduler adds in step `index`."""
    return draw(jax.random.fold_in(key, index), shape)


def initial_noise(seed: int, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The initial latents that `sample(seed=seed)` starts from.

    Args:
      seed: 0 to 2^64 - 1.
      shape: [batch, F, C, H, W] as it is computed, frames that are cut after sampling
        included.
    """
    problem = seed_problem(seed)
    if problem is not None:
        raise ValueError(problem)
    return draw(run_keys(seed)[0], shape)


def step_noise(seed: int, num_steps: int, shape: tuple[int, ...]) -> Array:
    """What a stochastic scheduler adds in the steps of `sample(seed=seed)`.

    Args:
      seed: 0 to 2^64 - 1.
      num_steps: denoising steps.
      shape: [batch, F, C, H, W] as it is computed.

    Returns:
      float32 [steps, batch, F, C, H, W], as `Noise.steps` takes it.
    """
    problem = seed_problem(seed)
    if problem is not None:
        raise ValueError(problem)
    key = run_keys(seed)[1]
    return jnp.stack([draw_step(key, index, shape) for index in range(num_steps)])


__all__ = [
    "LARGEST_SEED",
    "draw",
    "draw_step",
    "initial_noise",
    "run_keys",
    "seed_key",
    "seed_problem",
    "step_noise",
]
