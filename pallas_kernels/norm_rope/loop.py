"""Heads of tokens, 64 values per thread: the tiles that attention reads.

A warpgroup holds 8,192 channels of one head: 128 tokens of 64, or 64 tokens of 128,
which are the keys that share a scale. What a thread needs for a norm or a rotation it
has in its own registers. A block walks over its items, each the same tokens of four
heads; the next item loads while one is computed.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir

from pallas_kernels.dispatch import multiprocessors
from pallas_kernels.row_tiles import lanes
from pallas_kernels.row_tiles.lanes import CHANNELS, F32, I32, Memory

WARPGROUPS = 4  # 512 threads: 128 registers each
_BUFFERS = 2
THREADS = 128
WARP = 32
QUAD = 4  # lanes that share tokens
UNIT_BYTES = 128  # 64 channels of bfloat16, or 32 words of the rotary table
_SCRATCH_WORDS = 2 * WARPGROUPS * THREADS // WARP


@dataclasses.dataclass(frozen=True)
class HeadTile:
    """What one thread sees of one tile.

    The four lanes of a quad share tokens: each holds a quarter of the head's channels,
    64 values in all, which are four tokens of head dimension 64 or two of 128. So a
    quad reads and writes whole rows, and what is given per channel serves all tokens.

    Attributes:
      shape: (batch, tokens, heads, head_dim) of the whole.
      batch, block, head: which tile; block counts tiles along the tokens.
      thread: the thread of the block of threads.
      step: parity decides which half of the scratch is used.
      words: of each of the thread's tokens, its channels, two bfloat16 per word.
      table: the words of the rotary table for a token, four by four and in order, so
        that few are in registers at a time; None without a table.
      raw_inputs, raw_outputs: operands in global memory.
      scratch: shared memory for exchanges between warps.
    """

    shape: tuple[int, int, int, int]
    batch: I32
    block: I32
    head: I32
    thread: I32
    step: I32
    words: list[list[I32]]
    table: Callable[[int, int], list[I32]] | None
    raw_inputs: tuple[Memory, ...]
    raw_outputs: tuple[Memory, ...]
    scratch: Memory

    @property
    def width(self) -> int:
        """Channels per thread and token."""
        return self.shape[3] // QUAD

    @property
    def count(self) -> int:
        """Tokens per thread."""
        return CHANNELS // self.width

    @property
    def quarter(self) -> I32:
        """Which quarter of the head's channels."""
        return self.thread % QUAD

    def token(self, i: int) -> I32:
        """Of its batch entry."""
        first = self.block * tokens_of(self.shape[3])
        return first + token_slot(self.thread, i, self.count)

    def exists(self, i: int) -> ir.Value:
        """Whether there are such a token and such a head."""
        return lanes.both(self.token(i) < self.shape[1], self.head < self.shape[2])

    @property
    def safe_head(self) -> I32:
        """The head, 0 where there is none: safe to load from."""
        return lanes.select(self.head < self.shape[2], self.head, I32.of(0))

    def row(self, i: int) -> I32:
        """Number of the token over all batch entries; 0 where there is none."""
        row = self.batch * self.shape[1] + self.token(i)
        return lanes.select(self.exists(i), row, I32.of(0))

    def reduce_head(self, value: F32, combine: Callable[[F32, F32], F32]) -> F32:
        """Combines a value over the threads of one token and head."""
        for distance in (1, 2):
            value = combine(value, lanes.exchange(value, distance))
        return value

    def reduce_tile(self, value: F32, combine: Callable[[F32, F32], F32]) -> F32:
        """Combines a value over the warpgroup; once per tile, by all threads."""
        for distance in (1, 2, 4, 8, 16):
            value = combine(value, lanes.exchange(value, distance))
        warps = THREADS // WARP
        half = (self.step % 2) * (WARPGROUPS * warps)

        def offset(warp: I32) -> I32:
            return (half + warp) * 4

        mine = self.thread // WARP
        lanes.when(
            (self.thread % WARP).equals(0),
            lambda: self.scratch.store(offset(mine), [value.bits()]),
        )
        lanes.barrier()
        first = (self.thread // THREADS) * warps
        found = [
            self.scratch.load(offset(first + i), 1)[0].as_float() for i in range(warps)
        ]
        return lanes.tree(found, combine)

    def vector(self, operand: int, row: I32 | int) -> list[F32]:
        """This thread's values of row `row` of a raw float32 [rows, head_dim]."""
        start = (I32.of(row) * self.shape[3] + self.quarter * self.width) * 4
        return [
            word.as_float()
            for byte in range(0, self.width * 4, 16)
            for word in self.raw_inputs[operand].load(start, 4, byte)
        ]

    def store(self, operand: int, i: int, words: Sequence[I32]) -> None:
        """A token's part of a raw output [batch, tokens, heads, head_dim]."""
        cell = (self.row(i) * self.shape[2] + self.head) * QUAD + self.quarter
        start = cell * (len(words) * 4)

        def write() -> None:
            for j in range(0, len(words), 4):
                self.raw_outputs[operand].store(start, words[j : j + 4], j * 4)

        lanes.when(self.exists(i), write)


def token_slot(thread: I32, i: int, count: int) -> I32:
    """Which token of the tile token i of a thread is."""
    warp, lane = (thread % THREADS) // WARP, thread % WARP
    return warp * (WARP // QUAD * count) + lane // QUAD + i * (WARP // QUAD)


def tokens_of(head_dim: int) -> int:
    """Tokens of a tile."""
    return THREADS * CHANNELS // head_dim


def head_kernel(
    body: Callable[[HeadTile], None],
    *,
    name: str,
    x: jax.Array,
    table: jax.Array | None,
    raw_inputs: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
) -> tuple[jax.Array, ...]:
    """Runs `body` once per thread and tile.

    Args:
      body: builds the per-thread code.
      name: kernel name in profiles.
      x: bfloat16 [batch, tokens, heads, head_dim], head_dim 64 or 128.
      table: uint32 [tokens, head_dim / 2], see `Rotary.packed`; or None.
      raw_inputs: arrays that the body reads from global memory.
      outputs: arrays that the body writes to global memory.

    Returns:
      The outputs.
    """
    batch, tokens, heads, head_dim = x.shape
    rows = tokens_of(head_dim)
    parts = head_dim // CHANNELS
    blocks, groups = -(-tokens // rows), -(-heads // WARPGROUPS)
    items = batch * blocks * groups
    grid = min(items, multiprocessors())
    swizzle = (plgpu.SwizzleTransform(UNIT_BYTES),)
    n_raw = len(raw_inputs)
    tables = [] if table is None else [table.reshape(tokens, parts, CHANNELS // 2)]
    n_shared = 1 + len(tables)

    def kernel(*refs):
        x_gmem, *rest = refs
        table_gmem, rest = rest[: len(tables)], rest[len(tables) :]
        raw, rest = rest[:n_raw], rest[n_raw:]
        written, rest = rest[: len(outputs)], rest[len(outputs) :]
        x_smem, scratch, loaded, *table_smem = rest
        warpgroup = lax.axis_index("warpgroup")
        here = lax.axis_index("block")
        # Neighbouring items are heads of the same tokens, whose table stays in L2.
        first = lax.div(here * items, grid)
        count = lax.div((here + 1) * items, grid) - first

        def place(step):
            item = first + step
            where, group = lax.div(item, groups), lax.rem(item, groups)
            entry, block = lax.div(where, blocks), lax.rem(where, blocks)
            return entry, block, group * WARPGROUPS + warpgroup

        def load(step):
            entry, block, head = place(step)
            slot = lax.rem(step, _BUFFERS)
            plgpu.copy_gmem_to_smem(
                x_gmem.at[
                    pl.ds(entry * tokens + block * rows, rows),
                    pl.ds(head * parts, parts),
                ],
                x_smem.at[slot, warpgroup].transpose((1, 0, 2)),
                loaded.at[slot],
            )

            @pl.when((warpgroup == 0) & bool(table_gmem))
            def _():
                for source, target in zip(table_gmem, table_smem, strict=True):
                    plgpu.copy_gmem_to_smem(
                        source.at[pl.ds(block * rows, rows)],
                        target.at[slot].transpose((1, 0, 2)),
                        loaded.at[slot],
                    )

        for ahead in range(_BUFFERS):
            pl.when(ahead < count)(lambda ahead=ahead: load(ahead))

        @plgpu.inline_mgpu(
            arg_types=(
                *(plgpu.Layout.WG_SPLAT(()),) * 4,
                *(plgpu.RefType(swizzle),) * n_shared,
                *(plgpu.RefType() for _ in range(n_raw + len(written) + 1)),
            )
        )
        def work(_, entry, block, head, step, *operands):
            numbers = [I32(n.registers.item()) for n in (entry, block, head, step)]
            memories = [Memory.of(ref) for ref in operands]
            own, *shared = memories[:n_shared]
            thread = lanes.thread_index()

            def read(memory: Memory, i: int, j: int) -> list[I32]:
                return read_words(memory, thread, head_dim, i, j)

            count, pieces = CHANNELS * QUAD // head_dim, head_dim // QUAD // 8
            body(
                HeadTile(
                    shape=(batch, tokens, heads, head_dim),
                    batch=numbers[0],
                    block=numbers[1],
                    head=numbers[2],
                    thread=thread,
                    step=numbers[3],
                    words=[
                        [w for j in range(pieces) for w in read(own, i, j)]
                        for i in range(count)
                    ],
                    table=partial(read, shared[0]) if shared else None,
                    raw_inputs=tuple(memories[n_shared : n_shared + n_raw]),
                    raw_outputs=tuple(memories[n_shared + n_raw : -1]),
                    scratch=memories[-1],
                )
            )
            # All threads are done with the slot: it may be filled again.
            lanes.barrier()

        @pl.loop(0, count)
        def _(step):
            slot = lax.rem(step, _BUFFERS)
            plgpu.barrier_wait(loaded.at[slot])
            work(
                *place(step),
                step,
                x_smem.at[slot, warpgroup],
                *(ref.at[slot] for ref in table_smem),
                *raw,
                *written,
                scratch,
            )
            pl.when(step + _BUFFERS < count)(lambda: load(step + _BUFFERS))

    def shared(*leading: int, dtype):
        width = UNIT_BYTES // jnp.dtype(dtype).itemsize
        shape = (_BUFFERS, *leading, parts, rows, width)
        return plgpu.SMEM(shape, dtype, transforms=swizzle)

    kernel.__name__ = name
    return plgpu.kernel(
        kernel,
        out_type=tuple(outputs),
        grid=(grid,),
        grid_names=("block",),
        num_threads=WARPGROUPS,
        thread_name="warpgroup",
        scratch_types=(
            shared(WARPGROUPS, dtype=jnp.bfloat16),
            plgpu.SMEM((_SCRATCH_WORDS,), jnp.int32),
            plgpu.Barrier(num_arrivals=WARPGROUPS + len(tables), num_barriers=_BUFFERS),
            *(shared(dtype=jnp.uint32) for _ in tables),
        ),
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
        kernel_name=name,
    )(x.reshape(batch * tokens, heads * parts, CHANNELS), *tables, *raw_inputs)


def read_words(memory: Memory, thread: I32, head_dim: int, i: int, j: int) -> list[I32]:
    """Words 4 j to 4 j + 3 of token i of a thread.

    The memory holds a head of a tile, or the rotary table of its tokens, as swizzled
    units [parts, tokens, 128 bytes]; both have two bytes per channel.
    """
    width = head_dim // QUAD
    byte = (thread % QUAD) * (width * 2) + j * 16
    row = token_slot(thread, i, CHANNELS // width)
    start = (byte // UNIT_BYTES) * (tokens_of(head_dim) * UNIT_BYTES)
    start = start + row * UNIT_BYTES + byte % UNIT_BYTES
    return memory.load(lanes.swizzled(start, UNIT_BYTES), 4)
