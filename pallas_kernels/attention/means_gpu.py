"""Means over tiles of queries and blocks of keys and values at the speed of memory.

One launch reads q, k and v once. A thread adds up 16 bytes of neighbouring channels
over the tokens of one block; neighbouring threads take neighbouring channels, so that
a warp reads 512 bytes of a token at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import scf

from pallas_kernels.row_tiles import lanes
from pallas_kernels.row_tiles.lanes import F32, I32, Memory

_THREADS = 128
_BYTES = 16
_WORDS = _BYTES // 4
# Tokens whose loads are in flight together.
_UNROLLED = 16
# A float32 with a byte in the low mantissa is 2^23 plus that byte.
_EXPONENT = 0x4B000000
_SIGN_BITS = 0x80808080
_LOW_BYTES = 0x00FF00FF
_MOST_BYTES = 1 << 32
# Sums of so many bytes fit 16 bits.
_MOST_TOKENS = 256


@dataclasses.dataclass(frozen=True)
class Part:
    """One array whose blocks are averaged.

    Attributes:
        x: `[batch, tokens, heads, head_dim]`, bfloat16 or int8.
        size: tokens of a block.
        factor: of the means.
        row_scales: `[batch, heads, tokens]` float32, of int8 tokens; or None.
        block_scales: `[batch, heads, n]` float32, of int8 blocks; or None.
        blocks_per_scale: blocks that share one of `block_scales`.
    """

    x: jax.Array
    size: int
    factor: float = 1.0
    row_scales: jax.Array | None = None
    block_scales: jax.Array | None = None
    blocks_per_scale: int = 1

    @property
    def blocks(self) -> int:
        """Of a batch entry."""
        return -(-self.x.shape[1] // self.size)

    @property
    def columns(self) -> int:
        """Threads of a block."""
        _, _, heads, head_dim = self.x.shape
        return heads * head_dim * self.x.dtype.itemsize // _BYTES

    @property
    def channels(self) -> int:
        """Of a thread."""
        return _BYTES // self.x.dtype.itemsize

    @property
    def groups(self) -> int:
        """Thread blocks."""
        return pl.cdiv(self.x.shape[0] * self.blocks * self.columns, _THREADS)

    def arrays(self) -> list[jax.Array]:
        """Operands of the kernel."""
        scales = (self.row_scales, self.block_scales)
        return [self.x, *(scale for scale in scales if scale is not None)]

    def check(self) -> None:
        """Raises NotImplementedError for what the kernel does not have."""
        dtypes = (jnp.bfloat16, jnp.int8)
        if self.x.dtype not in dtypes or self.x.shape[3] % _BYTES:
            raise NotImplementedError(
                "the kernel for means takes bfloat16 or int8 with a head dimension in "
                f"steps of {_BYTES}, found {self.x.dtype} {self.x.shape}"
            )
        if self.x.size * self.x.dtype.itemsize >= _MOST_BYTES:
            raise NotImplementedError(
                f"the kernel for means takes less than {_MOST_BYTES} bytes, found "
                f"{self.x.dtype} {self.x.shape}"
            )
        if self.x.dtype == jnp.int8 and self.size > _MOST_TOKENS:
            raise NotImplementedError(
                f"the kernel for means takes at most {_MOST_TOKENS} tokens of int8 in "
                f"a block, found {self.size}"
            )


def _loop[T: (F32, I32)](
    start: I32,
    stop: I32,
    step: int,
    values: Sequence[T],
    body: Callable[[I32, list[T]], list[T]],
) -> list[T]:
    """`for i in range(start, stop, step)`: the values go from turn to turn."""
    kinds = [type(value) for value in values]
    loop = scf.ForOp(
        start.value, stop.value, I32.of(step).value, [value.value for value in values]
    )
    with ir.InsertionPoint(loop.body):
        carried = [
            kind(value) for kind, value in zip(kinds, loop.inner_iter_args, strict=True)
        ]
        found = body(I32(loop.induction_variable), carried)
        scf.YieldOp([value.value for value in found])
    return [kind(value) for kind, value in zip(kinds, loop.results, strict=True)]


def _add_bfloat16(sums: list[F32], words: list[I32], _: I32) -> list[F32]:
    values = [value for word in words for value in lanes.unpack_bf16(word)]
    return [a + b for a, b in zip(sums, values, strict=True)]


def _add_bytes(sums: list[I32], words: list[I32], _: I32) -> list[I32]:
    """Sums of bytes plus 128, two in a word: those of even and of odd channels."""
    found = []
    for word, even, odd in zip(words, sums[0::2], sums[1::2], strict=True):
        positive = word ^ _SIGN_BITS
        found += [even + (positive & _LOW_BYTES), odd + ((positive >> 8) & _LOW_BYTES)]
    return found


def _bytes_of(sums: list[Any], tokens: I32) -> list[F32]:
    """The sums of `_add_bytes`, one float32 per channel."""
    found = []
    for even, odd in zip(sums[0::2], sums[1::2], strict=True):
        for word in (even & 0xFFFF, odd & 0xFFFF, even >> 16, odd >> 16):
            # A small integer in the mantissa of 2^23; 128 per token was added.
            value = (word | _EXPONENT).as_float() - (2.0**23)
            found.append(_float(tokens).fma(-128.0, value))
    return found


def _float(number: I32) -> F32:
    """A small integer."""
    return (number | _EXPONENT).as_float() - (2.0**23)


def _add_scaled_bytes(
    scales: Memory, start: I32, sums: list[F32], words: list[I32], token: I32
) -> list[F32]:
    scale = scales.load((start + token) * 4, 1)[0].as_float()
    values = []
    for word in words:
        positive = word ^ _SIGN_BITS
        for byte in range(4):
            picked = lanes.permute_bytes(positive, I32.of(_EXPONENT), 0x7650 + byte)
            values.append(picked.as_float() - (2.0**23 + 128.0))
    return [v.fma(scale, s) for v, s in zip(values, sums, strict=True)]


def _sums_of(part: Part, scales: list[Memory], row: I32) -> tuple[Any, Any]:
    """What adds a token's words to the sums, and the sums of nothing."""
    if part.x.dtype != jnp.int8:
        return _add_bfloat16, [F32.of(0.0)] * part.channels
    if part.row_scales is None:
        return _add_bytes, [I32.of(0)] * (2 * _WORDS)
    return partial(_add_scaled_bytes, scales[0], row), [F32.of(0.0)] * part.channels


def _average(part: Part, item: I32, memories: list[Memory]) -> None:
    """What one thread does."""
    x, *scales, out = memories
    _, tokens, heads, head_dim = part.x.shape
    column, place = item % part.columns, item // part.columns
    block, entry = place % part.blocks, place // part.blocks
    head = column * part.channels // head_dim
    first = block * part.size
    row_bytes = part.columns * _BYTES
    start = (entry * tokens + first) * row_bytes + column * _BYTES
    left = I32.of(tokens) - first
    count = lanes.select(left < part.size, left, I32.of(part.size))
    zero = I32.of(0)
    quantized = part.x.dtype == jnp.int8
    add, sums = _sums_of(part, scales, (entry * heads + head) * tokens + first)

    def several(many: int, token: I32, sums: list) -> list:
        base = start + token * row_bytes
        loaded = [x.load(base, _WORDS, i * row_bytes) for i in range(many)]
        for i, words in enumerate(loaded):
            sums = add(sums, words, token + i)
        return sums

    whole = (count // _UNROLLED) * _UNROLLED
    sums = _loop(zero, whole, _UNROLLED, sums, partial(several, _UNROLLED))
    sums = _loop(whole, count, 1, sums, partial(several, 1))
    factor = lanes.ptx_f32("rcp.rn.f32", _float(count)) * part.factor
    if quantized and part.row_scales is None:
        sums = _bytes_of(sums, count)
    if part.block_scales is not None:
        many = part.block_scales.shape[-1]
        cell = (entry * heads + head) * many + block // part.blocks_per_scale
        factor = factor * scales[0].load(cell * 4, 1)[0].as_float()
    found = [(value * factor).bits() for value in sums]

    for i in range(0, part.channels, 4):
        out.store(item * (part.channels * 4), found[i : i + 4], i * 4)


def block_means(parts: Sequence[Part]) -> tuple[jax.Array, ...]:
    """The mean of each block of each part, `[batch, blocks, heads, head_dim]` float32.

    Raises:
        NotImplementedError: dtypes or shapes that the kernel does not have.
    """
    for part in parts:
        part.check()
    starts = [sum(part.groups for part in parts[:i]) for i in range(len(parts) + 1)]
    operands = [part.arrays() for part in parts]

    def kernel(*refs):
        group = lax.axis_index("group")
        sources, outs = list(refs[: -len(parts)]), refs[-len(parts) :]
        for i, part in enumerate(parts):
            given = [sources.pop(0) for _ in operands[i]]

            @plgpu.inline_mgpu(
                arg_types=(
                    plgpu.Layout.WG_SPLAT(()),
                    *(plgpu.RefType() for _ in range(len(given) + 1)),
                )
            )
            def work(_, own, *memory, part=part):
                item = I32(own.registers.item()) * _THREADS + lanes.thread_index()
                # Threads beyond the last repeat it: they store the same.
                last = part.x.shape[0] * part.blocks * part.columns - 1
                item = lanes.select(item < last, item, I32.of(last))
                _average(part, item, [Memory.of(ref) for ref in memory])

            @pl.when((group >= starts[i]) & (group < starts[i + 1]))
            def _(i=i, work=work, given=given):
                work(group - starts[i], *given, outs[i])

    shapes = [
        jax.ShapeDtypeStruct(
            (part.x.shape[0], part.blocks, *part.x.shape[2:]), jnp.float32
        )
        for part in parts
    ]
    return plgpu.kernel(
        kernel,
        out_type=tuple(shapes),
        grid=(starts[-1],),
        grid_names=("group",),
        num_threads=1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
        kernel_name="block_means",
    )(*(array for given in operands for array in given))


__all__ = ["Part", "block_means"]
