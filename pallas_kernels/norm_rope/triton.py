"""Norm and rotary embedding of queries and keys, and their INT8, by Triton."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from pallas_kernels.norm_rope.heads import Heads
from pallas_kernels.triton_backend import calls
from pallas_kernels.triton_backend.calls import Launch
from pallas_kernels.triton_backend.devices import DeviceClass, device_class

_NORMS = {None: 0, "rms": 1, "layer": 2}
_OUT, _QUERIES, _KEYS = range(3)


class Tile(NamedTuple):
    """Values of a tile of one head, heads that a program takes in turn, and warps."""

    values: int
    heads: int
    warps: int


# Timed on an H200 only (3.0 to 3.5 TB/s, quantized 1.5 to 1.7), and not tuned.
TILES = {kind: Tile(4096, 4, 4) for kind in DeviceClass}


def norm_rope(heads: Heads, *, tile: Tile | None = None) -> jax.Array:
    """Same as `Heads.values`, in one kernel, rounded once to the dtype of x.

    Raises:
        NotImplementedError: a dtype or head dimension that the kernel does not take.
    """
    tile = tile or TILES[device_class()]
    block = max(16, tile.values // heads.x.shape[-1])
    return _run(heads, None, block, tile, mode=_OUT)[0]


def quantized_queries(
    heads: Heads, scale: float, *, tile: Tile | None = None
) -> tuple[jax.Array, jax.Array]:
    """INT8 per token and head; `scale` and log2(e) go into the scales.

    Raises:
        NotImplementedError: as `norm_rope`.
    """
    tile = tile or TILES[device_class()]
    block = max(16, tile.values // heads.x.shape[-1])
    factor = scale / math.log(2.0)
    values, scales = _run(heads, None, block, tile, mode=_QUERIES, factor=factor)
    return values, scales


def quantized_keys(
    heads: Heads,
    mean: Float32[Array, "batch 1 heads head_dim"],
    scale_tokens: int,
    *,
    tile: Tile | None = None,
) -> tuple[jax.Array, jax.Array]:
    """INT8 of keys less `mean`, one scale per head and `scale_tokens` tokens.

    Raises:
        NotImplementedError: as `norm_rope`, or a number of tokens that is no power of
            two.
    """
    if scale_tokens & (scale_tokens - 1):
        raise NotImplementedError(
            f"the Triton kernel scales a power of two of keys, found {scale_tokens}"
        )
    tile = tile or TILES[device_class()]
    values, scales = _run(heads, mean, scale_tokens, tile, mode=_KEYS)
    return values, scales


def _run(
    heads: Heads,
    mean: jax.Array | None,
    block: int,
    tile: Tile,
    *,
    mode: int,
    factor: float = 1.0,
) -> list[jax.Array]:
    x = heads.x
    batch, tokens, count, head_dim = x.shape
    if x.dtype not in (jnp.bfloat16, jnp.float16) or head_dim & (head_dim - 1):
        raise NotImplementedError(
            "the Triton kernel of norm_rope takes bfloat16 or float16 and a head "
            f"dimension that is a power of two, found {x.dtype} {x.shape}"
        )
    if not x.size:
        raise NotImplementedError(f"norm_rope: expected tokens, found {x.shape}")
    none = jnp.zeros((1,), jnp.float32)
    table = none if heads.rotary is None else jnp.asarray(heads.rotary.packed())

    def given(operand: jax.Array | None) -> jax.Array:
        return none if operand is None else operand

    def stride(operand: jax.Array | None) -> int:
        return 0 if operand is None or operand.ndim == 1 else head_dim

    blocks = -(-tokens // block)
    scales: dict[int, tuple[int, ...]] = {
        _OUT: (1,),
        _QUERIES: (batch, count, tokens),
        _KEYS: (batch, count, blocks),
    }
    options: dict[str, Any] = {
        "TOKENS": tokens,
        "HEADS": count,
        "HEAD_DIM": head_dim,
        "NORM": _NORMS[heads.norm],
        "EPS": heads.eps,
        "HAS_ROW_FACTOR": heads.row_factor is not None,
        "HAS_WEIGHT": heads.weight is not None,
        "WEIGHT_STRIDE": stride(heads.weight),
        "HAS_BIAS": heads.bias is not None,
        "BIAS_STRIDE": stride(heads.bias),
        "ROTARY": heads.rotary is not None,
        "MODE": mode,
        "FACTOR": factor,
        "SCALE_BLOCKS": blocks,
        "BLOCK": block,
        "GROUP": tile.heads,
    }
    return calls.call(
        "norm_rope:norm_rope",
        (
            x,
            given(heads.row_factor),
            given(heads.weight),
            given(heads.bias),
            table,
            given(mean),
        ),
        [
            jax.ShapeDtypeStruct(x.shape, x.dtype if mode == _OUT else jnp.int8),
            jax.ShapeDtypeStruct(scales[mode], jnp.float32),
        ],
        grid=(blocks, -(-count // tile.heads), batch),
        launch=Launch(max(tile.warps, block * head_dim // 1024), 2),
        **options,
    )
