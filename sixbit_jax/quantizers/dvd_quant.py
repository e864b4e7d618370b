"""DVD-Quant (arXiv 2505.18663), weights: Bounded-init Grid Refinement, BGR.

Uniform asymmetric grids, one per row of a matrix [..., N, K]:

    q = clamp(round(w / s) + z, 0, 2^b - 1)        w_hat = s (q - z)

`minmax_grid` takes s and z from the row's range, `refined_grid` searches better ones;
`refine_nvfp4` is the same idea on the grid of NVFP4.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sixbit_jax.formats.uniform_grid import (
    UniformGrid,
    checked_rows,
    decode_uniform,
    encode_uniform,
    grid_of_range,
    minmax_grid,
    nearest_levels,
)
from sixbit_jax.quantizers.bgr_nvfp4 import refine_nvfp4


def _squared_error(w: jax.Array, grid: UniformGrid, bits: int) -> jax.Array:
    difference = w - nearest_levels(w, grid, bits) * grid.scale[..., None]
    return (difference * difference).sum(-1)


def _choose(condition: jax.Array, new: UniformGrid, old: UniformGrid) -> UniformGrid:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _least_squares(w: jax.Array, grid: UniformGrid, bits: int) -> UniformGrid:
    """s and z that fit the codes of `grid`, one after the other."""
    levels = nearest_levels(w, grid, bits)
    squares = (levels * levels).sum(-1)
    fitted = (levels * w).sum(-1) / jnp.where(squares == 0, 1.0, squares)
    scale = jnp.where(fitted > 0, fitted, grid.scale)
    shift = levels.mean(-1) - w.mean(-1) / scale
    zero = jnp.clip(grid.zero_point + shift, 0, 2**bits - 1)
    return UniformGrid(scale, jnp.round(zero))


def _refine(
    w: jax.Array, start: UniformGrid, bits: int, tolerance: float, max_rounds: int
) -> tuple[UniformGrid, jax.Array]:
    """Alternates codes and grid in every row until its error stops falling."""

    def going_on(carry: tuple) -> jax.Array:
        _, _, active, rounds = carry
        return active.any() & (rounds < max_rounds)

    def one_round(carry: tuple) -> tuple:
        grid, error, active, rounds = carry
        fitted = _least_squares(w, grid, bits)
        moved = _squared_error(w, fitted, bits)
        # With the old zero point the error cannot rise; with the new one, which is
        # rounded, it can.
        unmoved = fitted._replace(zero_point=grid.zero_point)
        still = _squared_error(w, unmoved, bits)
        fitted = _choose(moved <= still, fitted, unmoved)
        new = jnp.minimum(moved, still)
        falls = active & (new < error)
        return (
            _choose(falls, fitted, grid),
            jnp.where(falls, new, error),
            falls & (error - new > tolerance * error),
            rounds + 1,
        )

    error = _squared_error(w, start, bits)
    carry = (start, error, jnp.ones(error.shape, bool), jnp.int32(0))
    grid, error, _, _ = jax.lax.while_loop(going_on, one_round, carry)
    return grid, error


@partial(
    jax.jit, static_argnames=("bits", "num_clips", "rounds_per_start", "max_rounds")
)
def refined_grid(
    w: Float[Array, "*batch n k"],
    bits: int,
    *,
    num_clips: int = 20,
    rounds_per_start: int = 8,
    tolerance: float = 1e-3,
    max_rounds: int = 50,
) -> UniformGrid:
    """BGR: the best grid found from several clipped starts, per row.

    Outer search: for i = 0, 1, .. the row's range is narrowed by i (max - min) / n on
    both sides while the bounds do not cross, and its MinMax grid is a start (i = 0 is
    MinMax itself). Inner refinement, on the unclipped row, with q' = q - z:

        s = <q', w> / <q', q'>      z = round(clamp(mean(q) - mean(w) / s, 0, 2^b - 1))

    [ours] i = 0 is included, the best i is chosen per row instead of per matrix, a
    rounded z that is worse than the old one is not taken, and only the best start of a
    row is refined to the end (errors 0.5% above refining all of them, in a fraction of
    the time).

    Args:
      w: float [..., N, K]. A row with NaN or Inf gets the MinMax grid.
      bits: 2 to 8.
      num_clips: n; 0 keeps i = 0 only.
      tolerance: relative decrease of a row's squared error below which it is done.
      rounds_per_start: limit of the inner refinement of every start.
      max_rounds: limit of that of the best one, after those.

    Returns:
      The grids; a row's squared error is never above that of its MinMax grid, up to
      the rounding of the sums.

    Raises:
      ValueError: other bits, fewer than two axes, K = 0, a negative num_clips.
    """
    w = checked_rows(w, bits)
    if num_clips < 0:
        raise ValueError(f"num_clips must be at least 0, found {num_clips}")
    low, high = w.min(-1), w.max(-1)

    def attempt(best: tuple, fraction: jax.Array) -> tuple:
        grid, least = best
        cut = fraction * (high - low)
        start = grid_of_range(low + cut, high - cut, bits)
        found, error = _refine(w, start, bits, tolerance, rounds_per_start)
        better = error < least
        return (_choose(better, found, grid), jnp.where(better, error, least)), None

    plain = grid_of_range(low, high, bits)
    starts = [i / num_clips for i in range((num_clips + 1) // 2)] or [0.0]
    best = (plain, _squared_error(w, plain, bits))
    (grid, _), _ = jax.lax.scan(attempt, best, jnp.asarray(starts, jnp.float32))
    return _refine(w, grid, bits, tolerance, max_rounds)[0]


__all__ = [
    "UniformGrid",
    "decode_uniform",
    "encode_uniform",
    "minmax_grid",
    "refine_nvfp4",
    "refined_grid",
]
