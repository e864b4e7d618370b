"""NVFP4 quantization behind its front end, one pass over the row, by Triton."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from pallas_kernels.numerics import nvfp4
from pallas_kernels.row_tiles.site import SiteInput, outlier_of_partials
from pallas_kernels.triton_backend import calls, rows
from pallas_kernels.triton_backend.rows import RowShape


def quantize_nvfp4(
    site: SiteInput,
    tensor_scale: Float32[Array, ""] | None,
    *,
    with_stats: bool,
    shape: RowShape | None = None,
) -> tuple[jax.Array, jax.Array, Float32[Array, ""], jax.Array | None]:
    """Same as `reference.quantize_nvfp4`: one kernel, two without a tensor scale.

    Raises:
        NotImplementedError: x is not bfloat16, its rows are too long, or K is not a
            multiple of 16 or of the rotation.
    """
    x, affine, front = site.kernel_operands(stats=with_stats)
    m, k = x.shape
    if k % nvfp4.BLOCK:
        raise NotImplementedError(
            f"NVFP4 needs K to be a multiple of {nvfp4.BLOCK}, found {k}"
        )
    tiles = rows.row_tiles(m, k, shape, rotating=True)
    constants = rows.front_constants(front, m, k, tiles)
    launch = {"grid": (tiles.programs,), "launch": tiles.launch}
    if tensor_scale is None:
        [amax] = calls.call(
            "quantize_nvfp4:row_amax",
            (x, rows.given(affine)),
            [jax.ShapeDtypeStruct((m,), jnp.float32)],
            **launch,
            **constants,
        )
        tensor_scale = nvfp4.tensor_scale_of(amax[None])
    tensor_scale = jnp.asarray(tensor_scale, jnp.float32)
    codes, scales, partials = calls.call(
        "quantize_nvfp4:quantize_nvfp4",
        (x, rows.given(affine), tensor_scale.reshape(1)),
        [
            jax.ShapeDtypeStruct((m, k // 2), jnp.uint8),
            jax.ShapeDtypeStruct((m, k // nvfp4.BLOCK), jnp.uint8),
            rows.stats_shape(tiles, with_stats),
        ],
        **launch,
        STATS=with_stats,
        **constants,
    )
    scales = jax.lax.bitcast_convert_type(scales, jnp.float8_e4m3fn)
    leading = site.x.shape[:-1]
    return (
        codes.reshape(*leading, k // 2),
        scales.reshape(*leading, k // nvfp4.BLOCK),
        tensor_scale,
        outlier_of_partials(partials if with_stats else None, x.size),
    )
