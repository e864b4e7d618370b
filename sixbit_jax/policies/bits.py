"""What a run cost: activation bits, effective bits, skip fraction."""

import numpy as np
from numpy.typing import ArrayLike

from sixbit_jax.policies.base import BlockGrid
from sixbit_jax.routes import Route

_BITS = np.array([route.bits for route in Route], np.float64)


def activation_bits(route: ArrayLike, skip: ArrayLike, grid: BlockGrid) -> float:
    """MAC-weighted mean route width over the linears that were executed.

    Args:
      route: `Route` numbers, [..., L, S]; leading axes (steps, branches, runs) are
        averaged over.
      skip: bool [..., L]; the routes of skipped blocks do not count.
      grid: macs per block and site.

    Returns:
      Bits (`Route.bits`: NVFP4 4, INT8 8, ...). NaN if every block was skipped.

    Raises:
      ValueError: shapes that do not fit.
    """
    bits, macs = _weighted(route, skip, grid)
    executed = macs.sum()
    return float(bits.sum() / executed) if executed else float("nan")


def effective_bits(route: ArrayLike, skip: ArrayLike, grid: BlockGrid) -> float:
    """`activation_bits` with skipped blocks counted as 0 bits."""
    bits, macs = _weighted(route, skip, grid)
    runs = macs.size // np.asarray(grid.macs).size
    return float(bits.sum() / (runs * np.asarray(grid.macs, np.float64).sum()))


def skip_fraction(skip: ArrayLike) -> float:
    """Share of skipped blocks over all axes."""
    return float(np.asarray(skip, bool).mean())


def attention_density(density: ArrayLike, skip: ArrayLike) -> float:
    """Share of the blocks of keys that attention computed, where blocks were computed.

    Args:
      density: `Trace.attention_density`, [..., L].
      skip: which blocks were skipped, of the same shape.

    Returns:
      Mean over the blocks that ran; 1, of dense attention, where none did.
    """
    found = np.asarray(density, np.float64)[~np.asarray(skip, bool)]
    return float(found.mean()) if found.size else 1.0


def route_shares(
    route: ArrayLike, skip: ArrayLike, grid: BlockGrid
) -> dict[Route, float]:
    """Share of each route in the executed multiply-accumulates; they sum to 1."""
    _, macs = _weighted(route, skip, grid)
    executed = macs.sum()
    numbers = np.asarray(route)
    return {
        r: float(macs[numbers == r].sum() / executed) if executed else float("nan")
        for r in Route
    }


def _weighted(
    route: ArrayLike, skip: ArrayLike, grid: BlockGrid
) -> tuple[np.ndarray, np.ndarray]:
    """(bits * macs, macs) of executed sites, both [..., L, S]."""
    numbers, skipped = np.asarray(route), np.asarray(skip, bool)
    macs = np.asarray(grid.macs, np.float64)
    if numbers.shape[-2:] != macs.shape or numbers.shape[:-1] != skipped.shape:
        raise ValueError(
            f"expected routes [..., {macs.shape[0]}, {macs.shape[1]}] and skips "
            f"without the last axis, found {numbers.shape} and {skipped.shape}"
        )
    executed = macs * ~skipped[..., None]
    return _BITS[numbers] * executed, executed
