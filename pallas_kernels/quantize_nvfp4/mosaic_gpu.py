"""NVFP4 quantization behind its front end, one pass over the row (Hopper)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float16, Float32

from pallas_kernels.numerics import nvfp4
from pallas_kernels.row_tiles import (
    RowTiling,
    Tile,
    choose_tiling,
    encode,
    front,
    lanes,
    row_kernel,
)
from pallas_kernels.row_tiles.lanes import F32, I32
from pallas_kernels.row_tiles.site import SiteInput, outlier_of_partials

type Affine = Float16[Array, "variants 2 k"] | None


def quantize_rows(
    x: BFloat16[Array, "m k"],
    affine: Affine,
    tensor_scale: Float32[Array, ""],
    *,
    ends: front.Front,
    tiling: RowTiling,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Quantizes rows to NVFP4 with a given tensor scale.

    Args:
      x: activations.
      affine: factors and addends, see `Front.affine`; None without.
      tensor_scale: the tensor scale of all rows.
      ends: the front end.
      tiling: the tile; `choose_tiling(K)` is a good one.

    Returns:
      codes uint8 [M, K/2], block scales float8_e4m3fn [M, K/16] and, if the front end
      asks for them, the partial statistics [tiles, warps, 2].
    """
    rows_total, channels = x.shape
    scale_operand = 0 if affine is None else 1

    def body(tile: Tile) -> None:
        values, norm = front.rotated_values(tile, ends)
        [word] = tile.raw_inputs[scale_operand].load(I32.of(0), 1)
        words, scales = encode.encode_nvfp4(values, word.as_float(), norm)
        tile.store(0, words)
        encode.store_block_scales(tile, 1, scales)

    outputs = [
        jax.ShapeDtypeStruct((rows_total, channels // 2), jnp.uint8),
        jax.ShapeDtypeStruct((rows_total, channels // nvfp4.BLOCK), jnp.float8_e4m3fn),
    ]
    if ends.stats:
        tiles = -(-rows_total // tiling.rows)
        outputs.append(front.stats_shape(tiles, tiling.warps))
    results = row_kernel(
        body,
        name="quantize_nvfp4",
        tiling=tiling,
        inputs=(x,),
        raw_inputs=(*(() if affine is None else (affine,)), tensor_scale.reshape(1)),
        outputs=outputs,
        exchanged=front.SLOTS if ends.layer_norm else 0,
    )
    return results[0], results[1], results[2] if ends.stats else None


def row_amax(
    x: BFloat16[Array, "m k"],
    affine: Affine,
    *,
    ends: front.Front,
    tiling: RowTiling,
) -> Float32[Array, " m"]:
    """The largest finite magnitude of each row behind the front end.

    The first pass of a quantization whose tensor scale is not known.
    """

    def body(tile: Tile) -> None:
        values, norm = front.rotated_values(tile, ends)
        zero = F32.of(0.0)
        magnitudes = [v.abs() for v in values]
        finite = [lanes.select(m < encode.INFINITY, m, zero) for m in magnitudes]
        partial = lanes.tree(finite, F32.maximum)
        [amax] = tile.reduce_row([partial], F32.maximum, front.AMAX)
        tile.store_row(0, lambda: [amax * norm])

    [amax] = row_kernel(
        body,
        name="quantize_nvfp4_amax",
        tiling=tiling,
        inputs=(x,),
        raw_inputs=() if affine is None else (affine,),
        outputs=(jax.ShapeDtypeStruct(x.shape[:1], jnp.float32),),
        exchanged=front.SLOTS,
    )
    return amax


def quantize_nvfp4(
    site: SiteInput,
    tensor_scale: Float32[Array, ""] | None,
    *,
    with_stats: bool,
    tiling: RowTiling | None = None,
) -> tuple[jax.Array, jax.Array, Float32[Array, ""], jax.Array | None]:
    """Same as `reference.quantize_nvfp4`: one kernel, two without a tensor scale.

    Raises:
      NotImplementedError: x is not bfloat16, K is not a multiple of 128 or too large.
    """
    x, affine, ends = site.kernel_operands(stats=with_stats)
    tiling = tiling or choose_tiling(x.shape[1])
    if tensor_scale is None:
        first_pass = dataclasses.replace(ends, stats=False)
        amax = row_amax(x, affine, ends=first_pass, tiling=tiling)
        tensor_scale = nvfp4.tensor_scale_of(amax[None])
    tensor_scale = jnp.asarray(tensor_scale, jnp.float32)
    codes, scales, partials = quantize_rows(
        x, affine, tensor_scale, ends=ends, tiling=tiling
    )
    leading = site.x.shape[:-1]
    return (
        codes.reshape(*leading, codes.shape[1]),
        scales.reshape(*leading, scales.shape[1]),
        tensor_scale,
        outlier_of_partials(partials, x.size),
    )
