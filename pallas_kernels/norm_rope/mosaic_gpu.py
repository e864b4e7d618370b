"""Norm, rotary embedding and quantization of heads in one pass (Hopper)."""

import math
import operator
from collections.abc import Callable

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


def _turned(values: list[F32], table: Callable[[int], list[I32]] | None) -> list[F32]:
    """The rotary embedding of neighbouring pairs."""
    if table is None:
        return values
    exponent = I32.of(_EXPONENT)
    found = []
    words = (word for i in range(len(values) // 8) for word in table(i))
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


def _values(tile: HeadTile, operands: _Operands) -> list[F32]:
    """`Heads.values` of one thread."""
    heads = operands.heads
    values = unpack(tile.words, "bf16")
    factor: F32 | None = None
    if heads.norm:
        share = 1.0 / tile.shape[3]
        total = tile.reduce_head(lanes.tree(values, operator.add), operator.add)
        mean = total * share
        values = [v - mean for v in values]
        squares = [F32.of(0.0)] * 4
        for i, v in enumerate(values):
            squares[i % 4] = v.fma(v, squares[i % 4])
        square = tile.reduce_head(lanes.tree(squares, operator.add), operator.add)
        variance = square * share + heads.eps
        factor = lanes.ptx_f32("rsqrt.approx.f32", variance)
    if heads.row_factor is not None:
        memory = tile.raw_inputs[operands.index["row_factor"]]
        given = memory.load(tile.row() * 4, 1)[0].as_float()
        factor = given if factor is None else factor * given
    if factor is not None:
        values = [v * factor for v in values]
    if heads.weight is not None:
        weights = operands.vector(tile, "weight")
        if heads.bias is None:
            values = [v * w for v, w in zip(values, weights, strict=True)]
        else:
            biases = operands.vector(tile, "bias")
            triples = zip(values, weights, biases, strict=True)
            values = [v.fma(w, b) for v, w, b in triples]
    elif heads.bias is not None:
        biases = operands.vector(tile, "bias")
        values = [v + b for v, b in zip(values, biases, strict=True)]
    return _turned(values, tile.table)


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
        values = _values(tile, operands)
        pairs = zip(values[0::2], values[1::2], strict=True)
        tile.store(0, [lanes.pack_bf16(low, high) for low, high in pairs])

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
        values = _values(tile, operands)
        amax = tile.reduce_head(encode.largest(values), F32.maximum)
        words, step = encode.encode_int8(values, amax)
        tile.store(0, words)
        cell = (tile.batch * count + tile.head) * tokens + tile.token
        step = step * (scale / math.log(2.0))
        lanes.when(
            lanes.both(tile.exists(), tile.part.equals(0)),
            lambda: tile.raw_outputs[1].store(cell * 4, [step.bits()]),
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
        values = _values(tile, operands)
        row = tile.batch * count + tile.safe_head
        means = tile.vector(operands.index["mean"], row)
        values = [v - m for v, m in zip(values, means, strict=True)]
        own = lanes.select(tile.exists(), encode.largest(values), F32.of(0.0))
        amax = tile.reduce_tile(own, F32.maximum)
        words, step = encode.encode_int8(values, amax)
        tile.store(0, words)
        lanes.when(
            lanes.both((tile.thread % THREADS).equals(0), tile.exists()),
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
