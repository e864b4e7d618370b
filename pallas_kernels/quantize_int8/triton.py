"""Per-token INT8 quantization behind its front end, in one pass, by Triton."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int8

from pallas_kernels.row_tiles.site import SiteInput, outlier_of_partials
from pallas_kernels.triton_backend import calls, rows
from pallas_kernels.triton_backend.rows import RowShape


def quantize_int8(
    site: SiteInput, *, with_stats: bool, shape: RowShape | None = None
) -> tuple[Int8[Array, "*batch m k"], Float32[Array, "*batch m"], jax.Array | None]:
    """Same as `reference.quantize_int8`, in one kernel.

    Raises:
        NotImplementedError: x is not bfloat16, its rows are too long, or K is not a
            multiple of the rotation.
    """
    x, affine, front = site.kernel_operands(stats=with_stats)
    m, k = x.shape
    tiles = rows.row_tiles(m, k, shape, rotating=True)
    values, scales, partials = calls.call(
        "quantize_int8:quantize_int8",
        (x, rows.given(affine)),
        [
            jax.ShapeDtypeStruct((m, k), jnp.int8),
            jax.ShapeDtypeStruct((m,), jnp.float32),
            rows.stats_shape(tiles, with_stats),
        ],
        grid=(tiles.programs,),
        launch=tiles.launch,
        STATS=with_stats,
        **rows.front_constants(front, m, k, tiles),
    )
    return (
        values.reshape(site.x.shape),
        scales.reshape(site.x.shape[:-1]),
        outlier_of_partials(partials if with_stats else None, x.size),
    )
