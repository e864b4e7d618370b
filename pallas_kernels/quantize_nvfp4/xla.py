"""NVFP4 quantization for GPUs without a kernel: XLA, a 16-bit rotation."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.numerics import nvfp4
from pallas_kernels.row_tiles.site import SiteInput, outlier_of
from pallas_kernels.row_tiles.xla import rotated_in_16_bits


def quantize_nvfp4(
    site: SiteInput, tensor_scale: jax.Array | None, *, with_stats: bool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """`reference.quantize_nvfp4` with the rotation on tensor cores.

    Raises:
        NotImplementedError: x is not bfloat16.
    """
    if site.x.dtype != jnp.bfloat16:
        raise NotImplementedError(
            f"a 16-bit rotation needs bfloat16, found {site.x.dtype}"
        )
    activation = site.activation_values()
    rotated = rotated_in_16_bits(site, activation)
    codes, scales, tensor_scale = nvfp4.quantize(
        rotated.reshape(-1, rotated.shape[-1]), tensor_scale
    )
    leading = site.x.shape[:-1]
    return (
        codes.reshape(*leading, codes.shape[-1]),
        scales.reshape(*leading, scales.shape[-1]),
        tensor_scale,
        outlier_of(activation) if with_stats else None,
    )
