"""The persistent loop over row tiles that all row kernels share.

Each block walks over its tiles: the bulk copy engine loads tiles ahead, the threads
work on one tile in registers, the copy engine stores the result. Rows beyond the last
one read as zeros and are not written.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir

from pallas_kernels.row_tiles import lanes
from pallas_kernels.row_tiles.lanes import CHANNELS, F32, I32, WARP, Memory
from pallas_kernels.row_tiles.tiling import RowTiling

SWIZZLE_PERIOD = 1024  # bytes
DEFAULT_SMS = 132  # H100 and H200 SXM, when lowering without a GPU


@dataclasses.dataclass(frozen=True)
class Tile:
    """What one thread sees of one tile.

    Attributes:
      tiling: the shape of the tile.
      rows_total: M; rows from there on do not exist.
      index: tile number.
      thread, lane, warp: of this thread.
      row, segment: which row of the tile, which 64 channels of it.
      active: whether this thread holds channels at all.
      inputs, outputs: the tile in shared memory, swizzled, one per tiled operand.
      input_units, output_units: bytes of a swizzled unit of each.
      raw_inputs, raw_outputs: whole operands in global memory.
      scratch: shared memory for exchanges between warps.
    """

    tiling: RowTiling
    rows_total: int
    index: I32
    thread: I32
    lane: I32
    warp: I32
    row: I32
    segment: I32
    active: ir.Value
    inputs: tuple[Memory, ...]
    outputs: tuple[Memory, ...]
    input_units: tuple[int, ...]
    output_units: tuple[int, ...]
    raw_inputs: tuple[Memory, ...]
    raw_outputs: tuple[Memory, ...]
    scratch: Memory

    @property
    def global_row(self) -> I32:
        return self.index * self.tiling.rows + self.row

    def exists(self) -> ir.Value:
        """Whether this thread holds channels of a row below M."""
        return lanes.both(self.active, self.global_row < self.rows_total)

    def _chunks(self, unit_bytes: int, words: int) -> list[I32]:
        """Offsets of this thread's 16-byte chunks in a tile of such units."""
        chunks = words // 4
        parts = unit_bytes // (16 * chunks)
        # Idle threads point somewhere valid.
        segment = lanes.select(self.active, self.segment, I32.of(0))
        first = (segment % parts) * chunks
        unit = (segment // parts) * self.tiling.rows + self.row
        return [lanes.swizzled(unit, first + i, unit_bytes) for i in range(chunks)]

    def load(self, operand: int, words: int = CHANNELS // 2) -> list[I32]:
        """This thread's share of an input tile as 32-bit words.

        Args:
          operand: which input.
          words: how many, a multiple of 4; by default 64 bfloat16.
        """
        offsets = self._chunks(self.input_units[operand], words)
        memory = self.inputs[operand]
        return [word for offset in offsets for word in memory.load(offset, 4)]

    def store(self, operand: int, words: Sequence[I32]) -> None:
        """Stores this thread's share of an output tile, a multiple of 4 words."""

        def write() -> None:
            offsets = self._chunks(self.output_units[operand], len(words))
            for i, offset in enumerate(offsets):
                self.outputs[operand].store(offset, words[4 * i : 4 * i + 4])

        lanes.when(self.active, write)

    def row_index(self) -> I32:
        """Number of this thread's row, 0 where there is none: safe to load from."""
        return lanes.select(self.exists(), self.global_row, I32.of(0))

    def store_row(self, operand: int, values: Sequence[F32]) -> None:
        """Stores values of the row into a raw output [M, len(values)]."""
        size = 4 * len(values)
        lanes.when(
            lanes.both(self.exists(), self.segment.equals(0)),
            lambda: self.raw_outputs[operand].store(
                self.global_row * size, [value.bits() for value in values]
            ),
        )

    def reduce_row(
        self,
        values: Sequence[F32],
        combine: Callable[[F32, F32], F32],
        slot: int,
    ) -> list[F32]:
        """Combines values of the threads of each row, every value on its own.

        Every thread of the block must call it. Two calls may not use the same slots
        (one per value, from `slot` on) unless two barriers lie between them. The order
        is fixed, so that all threads of a row get the same bits. Threads without
        channels count as zero.
        """
        rows, warps = self.tiling.rows, self.tiling.warps
        zero = F32.of(0.0)
        values = [lanes.select(self.active, value, zero) for value in values]
        distance = rows
        while distance < WARP:
            values = [combine(v, lanes.exchange(v, distance)) for v in values]
            distance *= 2

        def offset(warp: int | I32, index: int) -> I32:
            base = (slot + index) * warps * rows * 4
            return (self.row + I32.of(warp) * rows) * 4 + base

        def write() -> None:
            for i, value in enumerate(values):
                self.scratch.store(offset(self.warp, i), [value.bits()])

        lanes.when(self.lane < rows, write)
        lanes.barrier()
        results = []
        for i in range(len(values)):
            parts = [
                self.scratch.load(offset(warp, i), 1)[0].as_float()
                for warp in range(warps)
            ]
            results.append(lanes.tree(parts, combine))
        return results

    def reduce_warp(self, value: F32, combine: Callable[[F32, F32], F32]) -> F32:
        """Combines one value per lane over the warp."""
        distance = 1
        while distance < WARP:
            value = combine(value, lanes.exchange(value, distance))
            distance *= 2
        return value


@dataclasses.dataclass(frozen=True)
class _Units:
    """An operand [M, columns] as [M, count, width], one swizzled unit in the last axis.

    In a tile's shared memory the units of one column lie together, row after row.
    """

    columns: int
    dtype: jnp.dtype

    @classmethod
    def of(cls, operand: jax.Array | jax.ShapeDtypeStruct) -> "_Units":
        return cls(operand.shape[1], jnp.dtype(operand.dtype))

    @property
    def swizzle(self) -> int:
        return 128 if self.columns * self.dtype.itemsize % 128 == 0 else 64

    @property
    def shape(self) -> tuple[int, int]:
        width = self.swizzle // self.dtype.itemsize
        return self.columns // width, width

    @property
    def transforms(self) -> tuple[plgpu.SwizzleTransform]:
        return (plgpu.SwizzleTransform(self.swizzle),)

    def scratch(self, slots: int, rows: int):
        """Shared memory for tiles, each aligned to the swizzle's period."""
        count, width = self.shape
        per_period = max(1, SWIZZLE_PERIOD // (rows * self.swizzle))
        count = -(-count // per_period) * per_period
        return plgpu.SMEM(
            (slots, count, rows, width), self.dtype, transforms=self.transforms
        )


def _multiprocessors() -> int:
    if jax.default_backend() != "gpu":
        return DEFAULT_SMS
    return jax.devices()[0].core_count


def row_kernel(
    body: Callable[[Tile], None],
    *,
    name: str,
    tiling: RowTiling,
    inputs: Sequence[jax.Array],
    raw_inputs: Sequence[jax.Array] = (),
    outputs: Sequence[jax.ShapeDtypeStruct] = (),
    raw_outputs: Sequence[jax.ShapeDtypeStruct] = (),
    scratch_words: int,
) -> tuple[jax.Array, ...]:
    """Runs `body` once per thread and tile.

    Args:
      body: builds the per-thread code; it must pass one block-wide barrier between
        its last read of the inputs and its first store to the outputs.
      name: kernel name in profiles.
      tiling: the tile; its channels are those of the inputs.
      inputs: arrays [M, K'] that travel through shared memory.
      raw_inputs: arrays that the body reads from global memory.
      outputs: arrays [M, K'] written through shared memory.
      raw_outputs: arrays that the body writes to global memory.
      scratch_words: shared 32-bit words for `Tile.reduce_row`.

    Returns:
      outputs, then raw_outputs.
    """
    rows, buffers = tiling.rows, tiling.buffers
    total = inputs[0].shape[0]
    tiles = -(-total // rows)
    grid = min(tiles, _multiprocessors() * tiling.blocks_per_sm)
    in_units = [_Units.of(x) for x in inputs]
    out_units = [_Units.of(x) for x in outputs]
    n_in, n_raw_in = len(inputs), len(raw_inputs)
    n_out, n_raw_out = len(outputs), len(raw_outputs)

    def kernel(*refs):
        refs = list(refs)

        def take(count: int) -> list:
            taken = refs[:count]
            del refs[:count]
            return taken

        in_gmem, raw_in_gmem = take(n_in), take(n_raw_in)
        out_gmem, raw_out_gmem = take(n_out), take(n_raw_out)
        in_smem, out_smem = take(n_in), take(n_out)
        scratch, loaded = refs
        block = lax.axis_index("block")
        leader = lax.axis_index("warpgroup") == 0
        count = pl.cdiv(tiles - block, grid)

        def rows_of(operand, step):
            return operand.at[pl.ds((block + step * grid) * rows, rows)]

        def by_row(tiles_ref, slot, units):
            return tiles_ref.at[slot, : units.shape[0]].transpose((1, 0, 2))

        def load(step):
            slot = lax.rem(step, buffers)
            for source, target, units in zip(in_gmem, in_smem, in_units, strict=True):
                plgpu.copy_gmem_to_smem(
                    rows_of(source, step),
                    by_row(target, slot, units),
                    loaded.at[slot],
                )

        for ahead in range(buffers - 1):
            pl.when(leader & (ahead < count))(lambda ahead=ahead: load(ahead))

        @plgpu.inline_mgpu(
            arg_types=(
                plgpu.Layout.WG_SPLAT(()),
                *(plgpu.RefType(units.transforms) for units in in_units),
                *(plgpu.RefType() for _ in range(n_raw_in)),
                *(plgpu.RefType(units.transforms) for units in out_units),
                *(plgpu.RefType() for _ in range(n_raw_out)),
                plgpu.RefType(),
            )
        )
        def work(_, tile, *operands):
            memories = [Memory.of(ref) for ref in operands]
            thread = lanes.thread_index()
            ends = [n_in, n_in + n_raw_in, n_in + n_raw_in + n_out]
            body(
                Tile(
                    tiling=tiling,
                    rows_total=total,
                    index=I32(tile.registers.item()),
                    thread=thread,
                    lane=thread % WARP,
                    warp=thread // WARP,
                    row=thread % rows,
                    segment=thread // rows,
                    active=thread < tiling.active,
                    inputs=tuple(memories[: ends[0]]),
                    raw_inputs=tuple(memories[ends[0] : ends[1]]),
                    outputs=tuple(memories[ends[1] : ends[2]]),
                    input_units=tuple(units.swizzle for units in in_units),
                    output_units=tuple(units.swizzle for units in out_units),
                    raw_outputs=tuple(memories[ends[2] : -1]),
                    scratch=memories[-1],
                )
            )
            lanes.publish_shared()
            lanes.barrier()

        @pl.loop(0, count)
        def _(step):
            slot = lax.rem(step, buffers)
            out_slot = lax.rem(step, 2)
            # The slot that is filled here was read before the last step's barrier.
            pl.when(leader & (step + buffers - 1 < count))(
                lambda: load(step + buffers - 1)
            )
            plgpu.barrier_wait(loaded.at[slot])
            if n_out:
                plgpu.wait_smem_to_gmem(1, wait_read_only=True)
            work(
                block + step * grid,
                *(ref.at[slot] for ref in in_smem),
                *raw_in_gmem,
                *(ref.at[out_slot] for ref in out_smem),
                *raw_out_gmem,
                scratch,
            )
            if n_out:

                @pl.when(leader)
                def _store():
                    for source, target, units in zip(
                        out_smem, out_gmem, out_units, strict=True
                    ):
                        plgpu.copy_smem_to_gmem(
                            by_row(source, out_slot, units),
                            rows_of(target, step),
                            commit_group=False,
                        )
                    plgpu.commit_smem_to_gmem_group()

        plgpu.wait_smem_to_gmem(0)

    kernel.__name__ = name
    results = plgpu.kernel(
        kernel,
        out_type=(
            *(
                jax.ShapeDtypeStruct((total, *units.shape), units.dtype)
                for units in out_units
            ),
            *raw_outputs,
        ),
        grid=(grid,),
        grid_names=("block",),
        num_threads=tiling.warpgroups,
        thread_name="warpgroup",
        scratch_types=(
            *(units.scratch(buffers, rows) for units in in_units),
            *(units.scratch(2, rows) for units in out_units),
            plgpu.SMEM((scratch_words,), jnp.int32),
            plgpu.Barrier(num_arrivals=n_in, num_barriers=buffers),
        ),
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
        kernel_name=name,
    )(
        *(
            x.reshape(total, *units.shape)
            for x, units in zip(inputs, in_units, strict=True)
        ),
        *raw_inputs,
    )
    flat = [
        y.reshape(shape.shape)
        for y, shape in zip(results[:n_out], outputs, strict=True)
    ]
    return (*flat, *results[n_out:])
