"""gamma, delta and its change in one pass over X, Y and the old delta (Hopper)."""

import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16

from pallas_kernels.block_stats.cache import CachedDelta, CacheFormat, check_format
from pallas_kernels.block_stats.reference import BlockStats, finish
from pallas_kernels.numerics import nvfp4
from pallas_kernels.row_tiles import (
    RowTiling,
    Tile,
    choose_tiling,
    encode,
    lanes,
    row_kernel,
)
from pallas_kernels.row_tiles.front import unpack
from pallas_kernels.row_tiles.lanes import F32
from pallas_kernels.row_tiles.loop import RUN

# Slots of Tile.share
SUMS, AMAX = 0, 4
SLOTS = 5


def _sum(values: list[F32]) -> F32:
    return lanes.tree([value.abs() for value in values], operator.add)


def _change(tile: Tile, cache_format: str, delta: list[F32]) -> list[F32]:
    """The thread's sums of |delta - old| and |old|: input 2, raw inputs 0 and 1."""
    words = tile.words[2]
    if cache_format == "nvfp4":
        scale = tile.raw_inputs[0].load(tile.row_index() * 4, 1)[0].as_float()
        scales = encode.load_block_scales(tile, 1)
        blocks = encode.decode_nvfp4(words, scales, scale)
        change = [
            value
            for i, block in enumerate(blocks)
            for value in block.subtracted_from(delta[i * RUN : (i + 1) * RUN])
        ]
        before = lanes.tree([block.magnitudes() for block in blocks], operator.add)
        return [_sum(change), before]
    if cache_format == "bf16":
        old = unpack(words, "bf16")
    else:
        scale = tile.raw_inputs[0].load(tile.row_index() * 4, 1)[0].as_float()
        old = encode.decode_int8(words, scale)
    change = [d - b for d, b in zip(delta, old, strict=True)]
    return [_sum(change), _sum(old)]


def _delta_shapes(
    rows: int, channels: int, cache_format: CacheFormat
) -> list[jax.ShapeDtypeStruct]:
    """The outputs that hold a delta of this format: values, scales, block scales."""
    scales = jax.ShapeDtypeStruct((rows,), jnp.float32)
    if cache_format == "bf16":
        return [jax.ShapeDtypeStruct((rows, channels), jnp.bfloat16)]
    if cache_format == "int8":
        return [jax.ShapeDtypeStruct((rows, channels), jnp.int8), scales]
    blocks = jax.ShapeDtypeStruct((rows, channels // nvfp4.BLOCK), jnp.float8_e4m3fn)
    return [jax.ShapeDtypeStruct((rows, channels // 2), jnp.uint8), scales, blocks]


def block_stats(
    x: BFloat16[Array, "*batch m k"],
    y: BFloat16[Array, "*batch m k"],
    old: CachedDelta | None,
    *,
    cache_format: CacheFormat,
    tiling: RowTiling | None = None,
) -> BlockStats:
    """Same as `reference.block_stats`, in one kernel and a sum over rows.

    Raises:
      NotImplementedError: not bfloat16, K not a multiple of 128 or too large.
    """
    check_format(cache_format)
    if x.dtype != jnp.bfloat16 or y.dtype != jnp.bfloat16:
        raise NotImplementedError(
            f"row kernels read bfloat16, found {x.dtype} and {y.dtype}"
        )
    leading, channels = x.shape[:-1], x.shape[-1]
    rows_total = x.size // channels
    old_format = old.format if old is not None else None
    item = {"bf16": 2.0, "int8": 1.0, "nvfp4": 0.5, None: 0.0}
    tiling = tiling or choose_tiling(channels, 4.0 + item[old_format])

    def body(tile: Tile) -> None:
        x_values, y_values = (unpack(words, "bf16") for words in tile.words[:2])
        sum_x = _sum(x_values)
        delta = [b - a for a, b in zip(x_values, y_values, strict=True)]
        sums = [_sum(delta), sum_x]
        if old_format is not None:
            sums += _change(tile, old_format, delta)
        tile.share(sums, operator.add, SUMS)
        quantized = cache_format != "bf16"
        if quantized:
            tile.share([encode.largest(delta)], F32.maximum, AMAX)
        lanes.barrier()

        def totals() -> list[F32]:
            found = [tile.shared(operator.add, SUMS + i) for i in range(len(sums))]
            return found + [F32.of(0.0)] * (4 - len(sums))

        tile.store_row(0, totals)
        if not quantized:
            pairs = zip(delta[0::2], delta[1::2], strict=True)
            tile.store(1, [lanes.pack_bf16(low, high) for low, high in pairs])
            return
        amax = tile.shared(F32.maximum, AMAX)
        if cache_format == "int8":
            words, scale = encode.encode_int8(delta, amax)
        else:
            scale = encode.row_tensor_scale(amax)
            words, blocks = encode.encode_nvfp4(delta, scale)
            encode.store_block_scales(tile, 3, blocks)
        tile.store(1, words)
        tile.store_row(2, lambda: [scale])

    def rows(array: jax.Array) -> jax.Array:
        return array.reshape(rows_total, array.size // max(rows_total, 1))

    inputs, raw_inputs = [rows(x), rows(y)], []
    if old is not None:
        inputs.append(rows(old.values))
        raw_inputs = [part.reshape(-1) for part in old[1:] if part is not None]
    sums = jax.ShapeDtypeStruct((rows_total, 4), jnp.float32)
    sums, values, *scales = row_kernel(
        body,
        name="block_stats",
        tiling=tiling,
        inputs=inputs,
        raw_inputs=raw_inputs,
        outputs=(sums, *_delta_shapes(rows_total, channels, cache_format)),
        exchanged=SLOTS,
    )
    parts = [values.reshape(*leading, -1)]
    if scales:
        parts.append(scales[0].reshape(leading))
    if len(scales) == 2:
        parts.append(scales[1].reshape(*leading, -1))
    return finish(
        sums.reshape(*leading, 4), CachedDelta(*parts), has_old=old is not None
    )
