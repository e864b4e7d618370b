"""Range search of asymmetric uniform grids, one per output channel (Q-VDiT)."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sixbit_jax.formats.uniform_grid import UniformGrid

SHRINKS = 50
SHRINK_STEP = 0.02


def grid_of_range(
    low: Float[Array, "*rows"], high: Float[Array, "*rows"], levels: Array
) -> UniformGrid:
    """The grid of a range, widened to hold 0: s = (max - min) / levels, z = -min / s.

    Args:
      low, high: those of each row.
      levels: highest code, broadcast against the rows.
    """
    low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    scale = (high - low) / levels
    scale = jnp.where(scale == 0, 1.0, scale)
    return UniformGrid(scale, jnp.round(-low / scale))


def _error(w: jax.Array, grid: UniformGrid, levels: jax.Array) -> jax.Array:
    scale, zero = grid.scale[..., None], grid.zero_point[..., None]
    codes = jnp.clip(jnp.round(w / scale) + zero, 0.0, levels[..., None])
    return jnp.square(w - (codes - zero) * scale).sum(-1)


@partial(jax.jit, static_argnames="shrinks")
def search_range(
    w: Float[Array, "*batch N K"],
    levels: Float[Array, "*batch"] | float,
    *,
    shrinks: int = SHRINKS,
) -> UniformGrid:
    """The grid of least squared error among 50 ranges, each 2% narrower than the last.

    For i = 0..49 a row's range is [min(w, 0), max(w, 0)] times 1 - 0.02 i; values
    outside are clipped (arXiv 2505.22167 and its code).

    Args:
      w: weights.
      levels: highest code, 2^bits - 1, of each matrix.
      shrinks: number of ranges; 1 is the plain range (round to nearest).

    Returns:
      Step sizes and zero points [*batch, N].

    Raises:
      ValueError: fewer than two axes, K = 0, or `shrinks` outside 1 to 50.
    """
    if w.ndim < 2 or not w.shape[-1] or not 1 <= shrinks <= SHRINKS:
        raise ValueError(
            f"range search: expected [..., N, K] with K > 0 and 1 to {SHRINKS} ranges, "
            f"found {tuple(w.shape)} and {shrinks}"
        )
    w = w.astype(jnp.float32)
    levels = jnp.broadcast_to(jnp.asarray(levels, jnp.float32), w.shape[:-2])[..., None]
    low, high = w.min(-1), w.max(-1)

    def attempt(best: tuple, shrink: jax.Array) -> tuple:
        grid, least = best
        share = 1.0 - SHRINK_STEP * shrink
        found = grid_of_range(low * share, high * share, levels)
        error = _error(w, found, levels)
        # False for NaN: such a row keeps its plain range.
        better = error < least
        chosen = jax.tree.map(lambda a, b: jnp.where(better, a, b), found, grid)
        return (chosen, jnp.where(better, error, least)), None

    plain = grid_of_range(low, high, levels)
    best = (plain, _error(w, plain, levels))
    (grid, _), _ = jax.lax.scan(attempt, best, jnp.arange(1.0, shrinks))
    return grid


__all__ = ["grid_of_range", "search_range"]
