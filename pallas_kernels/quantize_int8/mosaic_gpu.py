"""Per-token INT8 quantization behind its front end, one pass over the row (Hopper)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float16, Float32, Int8

from pallas_kernels.row_tiles import (
    RowTiling,
    Tile,
    choose_tiling,
    encode,
    front,
    row_kernel,
)
from pallas_kernels.row_tiles.lanes import F32
from pallas_kernels.row_tiles.site import SiteInput, outlier_of_partials


def quantize_rows(
    x: BFloat16[Array, "m k"],
    affine: Float16[Array, "variants 2 k"] | None,
    *,
    ends: front.Front,
    tiling: RowTiling,
) -> tuple[Int8[Array, "m k"], Float32[Array, " m"], Float32[Array, "..."] | None]:
    """Quantizes rows to INT8 with one scale each.

    Args:
      x: activations.
      affine: factors and addends, see `Front.affine`; None without.
      ends: the front end.
      tiling: the tile; `choose_tiling(K)` is a good one.

    Returns:
      values, scales and, if the front end asks for them, the partial statistics
      [tiles, warps, 2].
    """
    rows_total, channels = x.shape

    def body(tile: Tile) -> None:
        values, norm = front.rotated_values(tile, ends)
        [amax] = tile.reduce_row([encode.largest(values)], F32.maximum, front.AMAX)
        words, scale = encode.encode_int8(values, amax * norm, norm)
        tile.store(0, words)
        tile.store_row(1, lambda: [scale])

    outputs = [
        jax.ShapeDtypeStruct((rows_total, channels), jnp.int8),
        jax.ShapeDtypeStruct((rows_total,), jnp.float32),
    ]
    if ends.stats:
        tiles = -(-rows_total // tiling.rows)
        outputs.append(front.stats_shape(tiles, tiling.warps))
    results = row_kernel(
        body,
        name="quantize_int8",
        tiling=tiling,
        inputs=(x,),
        raw_inputs=() if affine is None else (affine,),
        outputs=outputs,
        exchanged=front.SLOTS,
    )
    return results[0], results[1], results[2] if ends.stats else None


def quantize_int8(
    site: SiteInput, *, with_stats: bool, tiling: RowTiling | None = None
) -> tuple[Int8[Array, "*batch m k"], Float32[Array, "*batch m"], jax.Array | None]:
    """Same as `reference.quantize_int8`, in one kernel.

    Raises:
      NotImplementedError: x is not bfloat16, K is not a multiple of 128 or too large.
    """
    x, affine, ends = site.kernel_operands(stats=with_stats)
    tiling = tiling or choose_tiling(x.shape[1])
    values, scales, partials = quantize_rows(x, affine, ends=ends, tiling=tiling)
    return (
        values.reshape(site.x.shape),
        scales.reshape(site.x.shape[:-1]),
        outlier_of_partials(partials, x.size),
    )
