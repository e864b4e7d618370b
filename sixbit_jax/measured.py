"""Finite values that stand for "not measured" and "nothing to compare with".

NaN and Inf would do as well, but then `JAX_DEBUG_NANS` and `jax_debug_infs` could not
find a user's own.
"""

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

NOT_MEASURED = -1.0
"""A quantity that is never negative and was not measured."""
NO_CHANGE = 1e30
"""A relative change where there is nothing to compare with: larger than any other."""
NO_LIMIT = 1e30
"""A limit that nothing exceeds."""


def known(values: ArrayLike) -> Float[np.ndarray, "..."]:
    """Values on the host, NaN where nothing was measured or compared.

    Reads recordings of earlier versions, in which NaN and Inf stood for both.
    """
    found = np.asarray(values, np.float64)
    usable = np.isfinite(found) & (found != NOT_MEASURED)
    usable &= found < 0.5 * NO_CHANGE
    return np.where(usable, found, np.nan)


__all__ = ["NOT_MEASURED", "NO_CHANGE", "NO_LIMIT", "known"]
