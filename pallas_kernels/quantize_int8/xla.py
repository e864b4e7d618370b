"""Per-token INT8 quantization for GPUs without a kernel: XLA, a 16-bit rotation."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.numerics import int8
from pallas_kernels.row_tiles.site import SiteInput, outlier_of
from pallas_kernels.row_tiles.xla import rotated_in_16_bits


def quantize_int8(
    site: SiteInput, *, with_stats: bool
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """`reference.quantize_int8` with the rotation on tensor cores.

    Raises:
        NotImplementedError: x is not bfloat16.
    """
    if site.x.dtype != jnp.bfloat16:
        raise NotImplementedError(
            f"a 16-bit rotation needs bfloat16, found {site.x.dtype}"
        )
    activation = site.activation_values()
    values, scales = int8.quantize(rotated_in_16_bits(site, activation))
    return values, scales, outlier_of(activation) if with_stats else None
