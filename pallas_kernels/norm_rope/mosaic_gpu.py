"""Norm, rotary embedding and quantization of heads in one pass (Hopper)."""

import math
import operator
from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int8

from pallas_kernels.norm_rope.heads import TABLE_OFFSET, TABLE_SCALE, Heads
from pallas_kernels.norm_rope.loop import THREADS, HeadTile, head_kernel, tokens_of
from pallas_kernels.row_tiles import encode, lanes
from pallas_kernels.row_tiles.front import unpack
from pallas_kernels.row_tiles.lanes import F32, I32

_HEAD_DIMS = (64, 128)
# A float32 with a 16-bit number in the low mantissa is 2^23 plus that number.
_EXPONENT = 0x4B000000
_LOW_HALF, _HIGH_HALF = 0x7610, 0x7632


class _Operands:
    """The raw inputs of the kernel, by name."""

    def __init__(self, heads: Heads, mean: jax.Array | None):
        self.heads = heads
        self.arrays: list[jax.Array] = []
        self.index: dict[str, int] = {}
        self.rows: dict[str, int] = {}
        factor = heads.row_factor
        for name, value, width in (
            ("row_factor", factor, 1),
            ("weight", heads.weight, heads.x.shape[-1]),
            ("bias", heads.bias, heads.x.shape[-1]),
            ("mean", mean, heads.x.shape[-1]),
        ):
            if value is not None:
                self.index[name] = len(self.arrays)
                self.arrays.append(value.astype(jnp.float32).reshape(-1, width))
                self.rows[name] = self.arrays[-1].shape[0]

    def vector(self, tile: HeadTile, name: str) -> list[F32]:
        """This thread's part of weight or bias, of all heads or of its own."""
        row = tile.safe_head if self.rows[name] > 1 else 0
        return tile.vector(self.index[name], row)


def _turned(values: list[F32], words: Iterable[I32]) -> list[F32]:
    """The rotary embedding of neighbouring pairs."""
    exponent = I32.of(_EXPONENT)
    found = []
    for i, word in enumerate(words):
        cos, sin = (
            (
                lanes.permute_bytes(word, exponent, half).as_float()
                - (2.0**23 + TABLE_OFFSET)
            )
            * (1.0 / TABLE_SCALE)
            for half in (_LOW_HALF, _HIGH_HALF)
        )
        real, imaginary = values[2 * i], values[2 * i + 1]
        found.append((-imaginary).fma(sin, real * cos))
        found.append(real.fma(sin, imaginary * cos))
    return found


def _normed(
    tile: HeadTile, values: list[F32], eps: float, *, centred: bool
) -> tuple[list[F32], F32]:
    """Values, less their mean over the head if `centred`, and 1 / their deviation."""
    share = 1.0 / tile.shape[3]
    if centred:
        total = tile.reduce_head(lanes.tree(values, operator.add), operator.add)
        mean = total * share
        values = [v - mean for v in values]
    squares = [F32.of(0.0)] * 4
    for i, v in enumerate(values):
        squares[i % 4] = v.fma(v, squares[i % 4])
    square = tile.reduce_head(lanes.tree(squares, operator.add), operator.add)
    return values, lanes.ptx_f32("rsqrt.approx.f32", square * share + eps)


def _values(tile: HeadTile, operands: _Operands) -> list[list[F32]]:
    """`Heads.values` of one thread's tokens."""
    heads = operands.heads
    weights = operands.vector(tile, "weight") if heads.weight is not None else None
    biases = operands.vector(tile, "bias") if heads.bias is not None else None
    found = []
    for i, words in enumerate(tile.words):
        values = unpack(words, "bf16")
        factor: F32 | None = None
        if heads.norm:
            values, factor = _normed(
                tile, values, heads.eps, centred=heads.norm == "layer"
            )
        if heads.row_factor is not None:
            memory = tile.raw_inputs[operands.index["row_factor"]]
            given = memory.load(tile.row(i) * 4, 1)[0].as_float()
            factor = given if factor is None else factor * given
        if factor is not None:
            values = [v * factor for v in values]
        if weights is not None and biases is not None:
            triples = zip(values, weights, biases, strict=True)
            values = [v.fma(w, b) for v, w, b in triples]
        elif weights is not None:
            values = [v * w for v, w in zip(values, weights, strict=True)]
        elif biases is not None:
            values = [v + b for v, b in zip(values, biases, strict=True)]
        if tile.table is not None:
            pieces = range(tile.width // 8)
            values = _turned(values, (w for j in pieces for w in tile.table(i, j)))
        found.append(values)
    return found


def _check(heads: Heads) -> None:
    x = heads.x
    if x.dtype != jnp.bfloat16:
        raise NotImplementedError(f"norm_rope reads bfloat16, found {x.dtype}")
    if x.shape[-1] not in _HEAD_DIMS:
        raise NotImplementedError(
            f"norm_rope needs a head dimension in {_HEAD_DIMS}, found {x.shape[-1]}"
        )
    if not x.size or x.size >= 1 << 31:
        raise NotImplementedError(
            f"norm_rope needs between 1 and 2^31 values, found shape {x.shape}"
        )


def _run(body, name: str, heads: Heads, operands: _Operands, outputs):
    table = None if heads.rotary is None else jnp.asarray(heads.rotary.packed())
    return head_kernel(
        body,
        name=name,
        x=heads.x,
        table=table,
        raw_inputs=operands.arrays,
        outputs=outputs,
    )


def norm_rope(heads: Heads) -> Float[Array, "batch tokens heads head_dim"]:
    """Same as `heads.values()`, rounded once to the dtype of x.

    Raises:
      NotImplementedError: not bfloat16, another head dimension, an odd number of heads.
    """
    _check(heads)
    operands = _Operands(heads, None)

    def body(tile: HeadTile) -> None:
        for i, values in enumerate(_values(tile, operands)):
            pairs = zip(values[0::2], values[1::2], strict=True)
            tile.store(0, i, [lanes.pack_bf16(low, high) for low, high in pairs])

    outputs = [jax.ShapeDtypeStruct(heads.x.shape, jnp.bfloat16)]
    return _run(body, "norm_rope", heads, operands, outputs)[0]


def quantized_queries(
    heads: Heads, scale: float
) -> tuple[
    Int8[Array, "batch tokens heads head_dim"], Float32[Array, "batch heads tokens"]
]:
    """INT8 per token and head; `scale` and log2(e) go into the scales.

    Raises:
      NotImplementedError: as `norm_rope`.
    """
    _check(heads)
    batch, tokens, count, _ = heads.x.shape
    operands = _Operands(heads, None)

    def body(tile: HeadTile) -> None:
        first = (tile.batch * count + tile.head) * tokens
        encoded = []
        for values in _values(tile, operands):
            amax = tile.reduce_head(encode.largest(values), F32.maximum)
            encoded.append(encode.encode_int8(values, amax))
        for i, (words, step) in enumerate(encoded):
            tile.store(0, i, words)
            cell = (first + tile.token(i)) * 4
            step = (step * (scale / math.log(2.0))).bits()
            lanes.when(
                lanes.both(tile.exists(i), tile.quarter.equals(0)),
                partial(tile.raw_outputs[1].store, cell, [step]),
            )

    outputs = [
        jax.ShapeDtypeStruct(heads.x.shape, jnp.int8),
        jax.ShapeDtypeStruct((batch, count, tokens), jnp.float32),
    ]
    values, scales = _run(body, "norm_rope_q", heads, operands, outputs)
    return values, scales


def quantized_keys(
    heads: Heads, mean: Float32[Array, "batch 1 heads head_dim"]
) -> tuple[
    Int8[Array, "batch tokens heads head_dim"], Float32[Array, "batch heads blocks"]
]:
    """INT8 of keys less `mean`, one scale per head and `tokens_of(head_dim)` tokens.

    Raises:
      NotImplementedError: as `norm_rope`.
    """
    _check(heads)
    batch, tokens, count, head_dim = heads.x.shape
    blocks = -(-tokens // tokens_of(head_dim))
    operands = _Operands(heads, mean)

    def body(tile: HeadTile) -> None:
        row = tile.batch * count + tile.safe_head
        means = tile.vector(operands.index["mean"], row)
        centred = [
            [v - m for v, m in zip(values, means, strict=True)]
            for values in _values(tile, operands)
        ]
        own = [
            lanes.select(tile.exists(i), encode.largest(values), F32.of(0.0))
            for i, values in enumerate(centred)
        ]
        amax = tile.reduce_tile(lanes.tree(own, F32.maximum), F32.maximum)
        words, step = encode.encode_int8(
            [v for values in centred for v in values], amax
        )
        for i in range(tile.count):
            tile.store(0, i, words[i * tile.width // 4 : (i + 1) * tile.width // 4])
        lanes.when(
            lanes.both((tile.thread % THREADS).equals(0), tile.exists(0)),
            lambda: tile.raw_outputs[1].store(
                (row * blocks + tile.block) * 4, [step.bits()]
            ),
        )

    outputs = [
        jax.ShapeDtypeStruct(heads.x.shape, jnp.int8),
        jax.ShapeDtypeStruct((batch, count, blocks), jnp.float32),
    ]
    values, scales = _run(body, "norm_rope_k", heads, operands, outputs)
    return values, scales
