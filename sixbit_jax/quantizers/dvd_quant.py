"""DVD-Quant (arXiv 2505.18663), weights: Bounded-init Grid Refinement, BGR.

Uniform asymmetric grids, one per row of a matrix [..., N, K]:

    q = clamp(round(w / s) + z, 0, 2^b - 1)        w_hat = s (q - z)

`minmax_grid` takes s and z from the row's range, `refined_grid` searches better ones;
`refine_nvfp4` is the same idea on the grid of NVFP4.
"""

from sixbit_jax.formats.uniform_grid import (
    UniformGrid,
    decode_uniform,
    encode_uniform,
    minmax_grid,
)
from sixbit_jax.quantizers.bgr_nvfp4 import refine_nvfp4
from sixbit_jax.quantizers.bgr_uniform import refined_grid

__all__ = [
    "UniformGrid",
    "decode_uniform",
    "encode_uniform",
    "minmax_grid",
    "refine_nvfp4",
    "refined_grid",
]
