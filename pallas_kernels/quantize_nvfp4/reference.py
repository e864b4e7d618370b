"""Definition of NVFP4 quantization of an activation behind its front end."""

import jax
from jaxtyping import Array, Float32, UInt8

from pallas_kernels.numerics import nvfp4
from pallas_kernels.row_tiles.site import SiteInput, outlier_of


def quantize_nvfp4(
    site: SiteInput, tensor_scale: Float32[Array, ""] | None, *, with_stats: bool
) -> tuple[UInt8[Array, "*batch m half_k"], Array, Float32[Array, ""], Array | None]:
    """`numerics.nvfp4.quantize` of the site's rotated activation, and its outlier.

    The tensor scale is one for all leading axes.
    """
    activation = site.activation_values()
    rotated = site.rotated(activation)
    rows = rotated.reshape(-1, rotated.shape[-1])
    codes, scales, tensor_scale = nvfp4.quantize(rows, tensor_scale)
    leading = site.x.shape[:-1]
    return (
        codes.reshape(*leading, -1),
        jax.lax.reshape(scales, (*leading, scales.shape[-1])),
        tensor_scale,
        outlier_of(activation) if with_stats else None,
    )
