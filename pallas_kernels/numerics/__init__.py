"""Number formats as plain arithmetic on raw arrays.

These functions are the definitions: the formats of `sixbit_jax` wrap them, the
reference of every kernel calls them, and kernels are tested against them bit by bit.
"""

from pallas_kernels.numerics import bits, e2m1, hadamard, int8, nvfp4
from pallas_kernels.numerics.hadamard import block_hadamard

__all__ = ["bits", "block_hadamard", "e2m1", "hadamard", "int8", "nvfp4"]
