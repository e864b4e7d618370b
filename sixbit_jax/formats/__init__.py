"""Number formats as validated pytrees."""

from sixbit_jax.formats.corrected import CorrectedArray
from sixbit_jax.formats.nvfp4 import NVFP4Array
from sixbit_jax.formats.residual import ResidualArray
from sixbit_jax.formats.rotation import rotate
from sixbit_jax.formats.smoothed import SmoothedArray
from sixbit_jax.formats.stored import ArrayLayout, StoredWeight
from sixbit_jax.formats.uniform import UniformArray

FORMATS: tuple[type[StoredWeight], ...] = (
    NVFP4Array,
    UniformArray,
    SmoothedArray,
    CorrectedArray,
    ResidualArray,
)
"""Every format in which a weight can be stored."""


def stored_layout(
    format_name: str, shape: tuple[int, ...]
) -> tuple[type[StoredWeight], ArrayLayout] | None:
    """The format of a name and the arrays of one matrix in it; None: no such format.

    Args:
      format_name: `StoredWeight.format_name`.
      shape: logical shape [N, K].

    Raises:
      ValueError: the shape cannot be stored in this format.
    """
    for kind in FORMATS:
        if (layout := kind.layout(format_name, shape)) is not None:
            return kind, layout
    return None


__all__ = [
    "FORMATS",
    "CorrectedArray",
    "NVFP4Array",
    "ResidualArray",
    "SmoothedArray",
    "StoredWeight",
    "UniformArray",
    "rotate",
    "stored_layout",
]
