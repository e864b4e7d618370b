"""Validation that looks at shapes and dtypes, never at values."""

import math
from typing import Any

import numpy as np


def described(leaf: Any) -> bool:
    """Whether a leaf has a shape and a dtype.

    False for the placeholders that tree transformations put into a pytree (None,
    booleans, `in_axes` integers): those are not validated.
    """
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def stored_bytes(*leaves: Any) -> int:
    """Bytes of arrays or of ShapeDtypeStructs."""
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in leaves)
