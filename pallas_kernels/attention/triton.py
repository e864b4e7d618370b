"""Attention on any NVIDIA GPU since Ampere by Triton, in 16 bits or with INT8 scores.

The algorithm is that of the Hopper kernel: the reference point of a row's softmax stays
that of the first block of keys, so that no later block needs a maximum or a rescaling;
tiles whose rows rise far above it are computed again with a running maximum, by a
second kernel whose programs mostly copy their tile, under 1% of the time.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.attention.quantize import QuantizedQKV, quantize_qkv
from pallas_kernels.attention.selection import BlockSelection
from pallas_kernels.triton_backend import calls
from pallas_kernels.triton_backend.calls import Launch
from pallas_kernels.triton_backend.devices import DeviceClass, device_class

_HEAD_DIMS = (64, 128)


class Tile(NamedTuple):
    """Queries and keys of a program's tile, and how it is launched."""

    rows: int
    keys: int
    warps: int
    stages: int


# By class of device, head dimension and whether scores are INT8. On an H200 those of
# 128 channels were timed (11.5 and 9.7 ms at 12 heads of 32,760 tokens), not tuned.
# Those of 64 are chosen by registers, two programs per multiprocessor, and untimed, as
# are all of the other devices: `python -m benchmarks.kernels.triton_kernels --only
# tune-attention-64,tune-attention-128` times candidates.
TILES = {
    DeviceClass.AMPERE: {
        (64, False): Tile(128, 64, 8, 3),
        (64, True): Tile(128, 64, 8, 3),
        (128, False): Tile(128, 32, 8, 3),
        (128, True): Tile(128, 32, 8, 3),
    },
    DeviceClass.SMALL: {
        (64, False): Tile(128, 64, 8, 2),
        (64, True): Tile(128, 64, 8, 2),
        (128, False): Tile(128, 32, 8, 3),
        (128, True): Tile(128, 32, 8, 3),
    },
    DeviceClass.HOPPER: {
        (64, False): Tile(128, 64, 8, 3),
        (64, True): Tile(128, 64, 8, 3),
        (128, False): Tile(128, 64, 8, 3),
        (128, True): Tile(128, 64, 8, 3),
    },
}


def _check(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    if device_class() not in TILES:
        raise NotImplementedError(
            "the Triton attention kernel is not compiled for B200 (Triton 3.6 fails at "
            "its sums of rows in tensor memory); cuDNN has one"
        )
    if q.shape[-1] not in _HEAD_DIMS:
        raise NotImplementedError(
            f"the Triton attention kernel needs a head dimension in {_HEAD_DIMS}, "
            f"found {q.shape[-1]}"
        )
    if v.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
        raise NotImplementedError(
            "the Triton attention kernel needs q, k and v all in bfloat16 or all in "
            f"float16, found {q.dtype}, {k.dtype} and {v.dtype}"
        )
    if not all(q.shape) or not k.shape[1]:
        raise NotImplementedError(
            f"the Triton attention kernel needs tokens, found q {q.shape} and k "
            f"{k.shape}"
        )
    if max(q.shape[1], k.shape[1]) * math.prod(q.shape[2:]) >= 2**31:
        raise NotImplementedError(
            "the Triton attention kernel counts the numbers of one batch entry in 31 "
            f"bits, found q {q.shape} and k {k.shape}"
        )


def _refuse_selection(selection: BlockSelection | None) -> None:
    if selection is not None:
        raise NotImplementedError(
            "the Triton attention kernel attends to all keys, found a block selection"
        )


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    precision: str,
    selection: BlockSelection | None = None,
    key_lengths: jax.Array | None = None,
    tile: Tile | None = None,
) -> jax.Array:
    """The kernel, on 16-bit inputs; with `precision="int8"` it quantizes them first.

    Raises:
        NotImplementedError: a dtype or a head dimension the kernel does not have, or a
            block selection.
    """
    _refuse_selection(selection)
    _check(q, k, v)
    if precision == "int8":
        operands = quantize_qkv(q, k, v, scale=scale)
        return quantized_attention(operands, key_lengths=key_lengths, tile=tile)
    none = jnp.zeros((1,), jnp.float32)
    return _run(
        (q, k, v, none, none),
        key_lengths,
        tile,
        factor=scale / math.log(2.0),
        scale_tokens=0,
    )


def quantized_attention(
    operands: QuantizedQKV,
    *,
    selection: BlockSelection | None = None,
    key_lengths: jax.Array | None = None,
    tile: Tile | None = None,
) -> jax.Array:
    """Attention of quantized queries and keys, in the dtype of v.

    Raises:
        NotImplementedError: as `attention`.
    """
    _refuse_selection(selection)
    q, k, v = operands.q_values, operands.k_values, operands.v
    _check(q.astype(v.dtype), k.astype(v.dtype), v)
    return _run(
        (q, k, v, operands.q_scales, operands.k_scales),
        key_lengths,
        tile,
        factor=1.0,
        scale_tokens=operands.scale_tokens,
    )


def _run(
    arrays: tuple[jax.Array, ...],
    key_lengths: jax.Array | None,
    tile: Tile | None,
    *,
    factor: float,
    scale_tokens: int,
) -> jax.Array:
    q, k, v, q_scales, k_scales = arrays
    batch, q_tokens, heads, head_dim = q.shape
    tile = tile or TILES[device_class()][head_dim, scale_tokens > 0]
    lengths = jnp.zeros((batch,), jnp.int32)
    if key_lengths is not None:
        lengths = key_lengths.astype(jnp.int32)
    grid = (-(-q_tokens // tile.rows), batch * heads)
    # Float16 ends at 65,504: its probabilities need the running maximum.
    online = v.dtype != jnp.bfloat16
    options: dict[str, Any] = {
        "grid": grid,
        "launch": Launch(tile.warps, tile.stages),
        "fused_multiply_add": True,
        "Q_TOKENS": q_tokens,
        "KV_TOKENS": k.shape[1],
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "FACTOR": factor,
        "SCALE_TOKENS": scale_tokens,
        "SCALE_BLOCKS": k_scales.shape[-1],
        "HAS_LENGTHS": key_lengths is not None,
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.keys,
    }
    operands = (q, k, v, q_scales, k_scales, lengths)
    of_out = jax.ShapeDtypeStruct(q.shape, v.dtype)
    out, risen = calls.call(
        "attention:attention",
        operands,
        [of_out, jax.ShapeDtypeStruct(grid[::-1], jnp.int32)],
        ONLINE=online,
        **options,
    )
    if online:
        return out
    [out] = calls.call(
        "attention:attention_of_risen",
        (*operands, risen, out),
        [of_out],
        **options,
    )
    return out
