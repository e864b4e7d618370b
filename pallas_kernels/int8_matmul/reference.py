"""The definition of `int8_matmul` in plain jax.numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.gemm import epilogue
from pallas_kernels.gemm.epilogue import EpilogueOperands


def int8_matmul(
    x_values: jax.Array,
    x_scales: jax.Array,
    w_values: jax.Array,
    w_scales: jax.Array,
    operands: EpilogueOperands,
    out_dtype,
) -> jax.Array:
    """Exact int32 sums; scales and epilogue in float32; one rounding at the end."""
    sums = lax.dot_general(
        x_values,
        w_values,
        (((x_values.ndim - 1,), (1,)), ((), ())),
        preferred_element_type=jnp.int32,
    )
    y = sums.astype(jnp.float32) * x_scales[..., None] * w_scales
    return epilogue.apply(y, operands, out_dtype)
