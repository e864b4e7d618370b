"""Definition of per-token INT8 quantization behind its front end."""

from jaxtyping import Array, Float32, Int8

from pallas_kernels.numerics import int8
from pallas_kernels.row_tiles.site import SiteInput, outlier_of


def quantize_int8(
    site: SiteInput, *, with_stats: bool
) -> tuple[Int8[Array, "*batch m k"], Float32[Array, "*batch m"], Array | None]:
    """`numerics.int8.quantize` of the site's rotated activation, and its outlier."""
    activation = site.activation_values()
    values, scales = int8.quantize(site.rotated(activation))
    return values, scales, outlier_of(activation) if with_stats else None
