"""The block Hadamard as XLA runs it fast on a GPU: a product of 16-bit numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.numerics.hadamard import sylvester
from pallas_kernels.row_tiles.site import SiteInput


def rotated_in_16_bits(site: SiteInput, values: jax.Array) -> jax.Array:
    """`SiteInput.rotated` with the 16 bits that kernels let into the rotation.

    bfloat16 as x came or behind GELU, float16 behind a norm: the products of the matrix
    of +-1 are exact, their sums float32. A float32 product at full precision takes ten
    times as long on tensor cores.
    """
    if not site.rotation:
        return values
    behind_norm = site.norm is not None and site.activation is None
    dtype = jnp.float16 if behind_norm else jnp.bfloat16
    grouped = values.astype(dtype).reshape(*values.shape[:-1], -1, site.rotation)
    turned = jax.lax.dot_general(
        grouped,
        jnp.asarray(sylvester(site.rotation), dtype),
        (((grouped.ndim - 1,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return (turned * float(site.rotation) ** -0.5).reshape(values.shape)
