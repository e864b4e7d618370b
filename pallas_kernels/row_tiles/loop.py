"""The persistent loop over row tiles that all row kernels share.

Each block walks over its tiles: the bulk copy engine loads tiles ahead, the threads
take their part into registers and write their results straight to global memory, in
pieces that neighbouring threads complete to whole sectors. Rows beyond the last one
read as zeros and are not written.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir

from pallas_kernels.dispatch import multiprocessors
from pallas_kernels.row_tiles import lanes
from pallas_kernels.row_tiles.lanes import F32, I32, Memory
from pallas_kernels.row_tiles.tiling import BLOCK, SLOTS, WARP, RowTiling
from pallas_kernels.row_tiles.units import RUN, Units

RUNS = 4
HALF = BLOCK // 2
# Only the warp that loads waits until the others have read a tile. They run on, none
# ahead by more tiles than there are buffers: as many of the hardware's barriers take
# turns. Not needed where threads meet anyway, behind `Tile.share`.
HARDWARE_BARRIERS = 16


@dataclasses.dataclass(frozen=True)
class Tile:
    """What one thread sees of one tile.

    A thread of lane 4 g + q holds 64 channels of one row as four runs of 16 neighbours:
    runs 2 i and 2 i + 1 lie in its block i = 0, 1 of 128 channels, at channel 16 q of
    the lower and of the upper half. The four lanes of one g complete a block, and the
    eight g of a warp read different banks of the swizzled shared memory.

    Attributes:
      tiling: the shape of the tile.
      rows_total: M; rows from there on do not exist.
      index: tile number.
      thread: the thread of the block.
      words: the thread's part of each tiled input, 32-bit words in channel order; zero
        where there are no channels.
      raw_inputs, raw_outputs: whole operands in global memory.
      scratch: shared memory for exchanges between warps.
      scratch_start: where this tile's half of it begins, in bytes. Tiles alternate, so
        that slow threads may still read what they exchanged in the tile before.
    """

    tiling: RowTiling
    rows_total: int
    index: I32
    thread: I32
    words: tuple[list[I32], ...]
    raw_inputs: tuple[Memory, ...]
    raw_outputs: tuple[Memory, ...]
    scratch: Memory
    scratch_start: I32

    @property
    def warp(self) -> I32:
        return self.thread // WARP

    @property
    def lane(self) -> I32:
        return self.thread % WARP

    @property
    def quarter(self) -> I32:
        return self.thread % 4

    @property
    def row(self) -> I32:
        """Row of the tile."""
        return (self.lane // 4) % self.tiling.rows

    def block(self, i: int | I32) -> I32:
        """Which 128 channels of the row block i of this thread is."""
        rows = self.tiling.rows
        first = self.warp * (SLOTS // rows) + (self.lane // 4) // rows
        return first + i * (SLOTS // 2 // rows)

    def holds(self, i: int | I32) -> ir.Value:
        """Whether block i has channels."""
        return self.block(i) < self.tiling.blocks

    def channel(self, run: int) -> I32:
        """First channel of a run; 0 if it has none."""
        block = self.block(run // 2)
        if self.tiling.ragged:
            block = lanes.select(self.holds(run // 2), block, I32.of(0))
        return block * BLOCK + self.quarter * RUN + (run % 2) * HALF

    @property
    def global_row(self) -> I32:
        return self.index * self.tiling.rows + self.row

    def exists(self) -> ir.Value:
        """Whether this thread's row is below M."""
        return self.global_row < self.rows_total

    def row_index(self) -> I32:
        """Number of this thread's row, 0 where there is none: safe to load from."""
        return lanes.select(self.exists(), self.global_row, I32.of(0))

    def masked(self, words: Sequence[I32]) -> list[I32]:
        """The words, zero where there are no channels."""
        if not self.tiling.ragged:
            return list(words)
        per_block = len(words) // 2
        return [
            lanes.select(self.holds(i // per_block), word, I32.of(0))
            for i, word in enumerate(words)
        ]

    def read(self, memory: Memory, unit_bytes: int, words: int) -> list[I32]:
        """The thread's part of a tile in swizzled shared memory.

        Args:
          memory: the tile, in units of `unit_bytes`, row after row.
          unit_bytes: 64 or 128.
          words: 32-bit words per run.
        """
        access = min(words, 4)
        found = []
        for run in range(RUNS):
            byte = self.channel(run) * (words * 4) // RUN
            unit = (byte // unit_bytes) * self.tiling.rows + self.row
            start = unit * unit_bytes + byte % unit_bytes
            for i in range(0, words, access):
                offset = lanes.swizzled(start + i * 4, unit_bytes)
                found += memory.load(offset, access)
        return self.masked(found)

    def store(self, operand: int, words: Sequence[I32]) -> None:
        """Stores the thread's part into a raw output [M, K], in channel order."""
        per_run = len(words) // RUNS
        access = min(per_run, 4)
        row = self.global_row * (self.tiling.channels * per_run * 4 // RUN)

        def write(blocks: Sequence[int]) -> None:
            for run in (2 * i + half for i in blocks for half in range(2)):
                start = row + self.channel(run) * (per_run * 4) // RUN
                for j in range(0, per_run, access):
                    part = words[run * per_run + j : run * per_run + j + access]
                    self.raw_outputs[operand].store(start, part, j * 4)

        if not self.tiling.ragged:
            lanes.when(self.exists(), lambda: write(range(2)))
            return
        for i in range(2):
            here = lanes.both(self.exists(), self.holds(i))
            lanes.when(here, lambda i=i: write([i]))

    def store_row(self, operand: int, values: Callable[[], Sequence[F32]]) -> None:
        """Stores values of the row into a raw output [M, len(values)].

        They are built where they are stored: by one thread of a row.
        """

        def write() -> None:
            words = [value.bits() for value in values()]
            start = self.global_row * (4 * len(words))
            self.raw_outputs[operand].store(start, words)

        first = lanes.both(self.quarter.equals(0), self.block(0).equals(0))
        lanes.when(lanes.both(self.exists(), first), write)

    def _scratch_at(self, slot: int, warp: int | I32) -> I32:
        rows, warps = self.tiling.rows, self.tiling.warps
        start = self.scratch_start + slot * warps * rows * 4
        return start + (self.row * warps + warp) * 4

    def share(
        self, values: Sequence[F32], combine: Callable[[F32, F32], F32], slot: int
    ) -> None:
        """Combines values over each warp and leaves them to the row's other warps.

        Behind a barrier, `shared` gives them out. A tile may not use a slot (one per
        value, from `slot` on) twice. Values without channels must be neutral.
        """
        values = list(values)
        for distance in (1, 2, 4, 8, 16):
            if distance < 4 or distance >= 4 * self.tiling.rows:
                values = [combine(v, lanes.exchange(v, distance)) for v in values]

        def write() -> None:
            for i, value in enumerate(values):
                at = self._scratch_at(slot + i, self.warp)
                self.scratch.store(at, [value.bits()])

        first = lanes.both(self.quarter.equals(0), self.lane < 4 * self.tiling.rows)
        lanes.when(first, write)

    def shared(self, combine: Callable[[F32, F32], F32], slot: int) -> F32:
        """What the warps of this thread's row left in a slot, combined.

        The order is fixed, so that all threads of a row get the same bits.
        """
        parts = [
            word.as_float()
            for warp in range(0, self.tiling.warps, 4)
            for word in self.scratch.load(self._scratch_at(slot, warp), 4)
        ]
        return lanes.tree(parts, combine)

    def reduce_row(
        self, values: Sequence[F32], combine: Callable[[F32, F32], F32], slot: int
    ) -> list[F32]:
        """Combines values of the threads of each row, every value on its own.

        Every thread of the block must call it; see `share` and `shared`.
        """
        self.share(values, combine, slot)
        lanes.barrier()
        return [self.shared(combine, slot + i) for i in range(len(values))]

    def reduce_warp(self, value: F32, combine: Callable[[F32, F32], F32]) -> F32:
        """Combines one value per lane over the warp."""
        for distance in (1, 2, 4, 8, 16):
            value = combine(value, lanes.exchange(value, distance))
        return value


def row_kernel(
    body: Callable[[Tile], None],
    *,
    name: str,
    tiling: RowTiling,
    inputs: Sequence[jax.Array],
    raw_inputs: Sequence[jax.Array] = (),
    outputs: Sequence[jax.ShapeDtypeStruct],
    exchanged: int,
) -> tuple[jax.Array, ...]:
    """Runs `body` once per thread and tile.

    Args:
      body: builds the per-thread code.
      name: kernel name in profiles.
      tiling: the tile.
      inputs: arrays [M, K'] that travel through shared memory, K' items per row.
      raw_inputs: arrays that the body reads from global memory.
      outputs: arrays that the body writes to global memory.
      exchanged: slots for `Tile.share`, and a barrier behind it; 0 if the body has
        neither.

    Returns:
      The outputs.

    Raises:
      NotImplementedError: no rows, or an array of 2^32 bytes or more.
    """
    rows, buffers = tiling.rows, tiling.buffers
    total = inputs[0].shape[0]
    if not total:
        raise NotImplementedError("row kernels launch nothing for no rows, found M = 0")
    for array in (*raw_inputs, *outputs):
        size = array.size * jnp.dtype(array.dtype).itemsize
        if size >= 1 << 32:
            raise NotImplementedError(
                f"row kernels address 2^32 bytes, found shape {array.shape} of "
                f"{array.dtype}"
            )
    tiles = -(-total // rows)
    grid = min(tiles, multiprocessors() * tiling.blocks_per_sm)
    units = [Units.of(x) for x in inputs]
    n_in, n_raw = len(inputs), len(raw_inputs)
    threads = tiling.warps * WARP
    half = exchanged * tiling.warps * rows * 4

    def kernel(*refs):
        refs = list(refs)
        in_gmem, raw = refs[:n_in], refs[n_in : n_in + n_raw]
        written = refs[n_in + n_raw : -n_in - 2]
        in_smem, (scratch, loaded) = refs[-n_in - 2 : -2], refs[-2:]
        block = lax.axis_index("block")
        leader = lax.axis_index("warpgroup") == 0
        count = pl.cdiv(tiles - block, grid)

        def load(step):
            slot = lax.rem(step, buffers)
            here = pl.ds((block + step * grid) * rows, rows)
            for source, target, unit in zip(in_gmem, in_smem, units, strict=True):
                plgpu.copy_gmem_to_smem(
                    source.at[here],
                    target.at[slot, : unit.shape[0]].transpose((1, 0, 2)),
                    loaded.at[slot],
                )

        for ahead in range(buffers - 1):
            pl.when(leader & (ahead < count))(lambda ahead=ahead: load(ahead))

        def number_of(step: I32) -> I32:
            """Of the hardware barrier that readers of a step's tile pass."""
            return step % buffers + (HARDWARE_BARRIERS - buffers)

        def have_read(step: I32, refilled: ir.Value) -> None:
            """Tells that this thread has read the tile of a step."""
            others = I32.of(WARP - 1) < lanes.thread_index()
            lanes.when(
                lanes.both(others, refilled),
                lambda: lanes.signal(number_of(step), threads),
            )

        @plgpu.inline_mgpu(
            arg_types=(
                *(plgpu.Layout.WG_SPLAT(()) for _ in range(3)),
                *(plgpu.RefType(unit.transforms) for unit in units),
                *(plgpu.RefType() for _ in range(n_raw + len(written) + 1)),
            )
        )
        def work(_, step, count, index, *operands):
            step = I32(step.registers.item())
            memories = [Memory.of(ref) for ref in operands]
            tile = Tile(
                tiling=tiling,
                rows_total=total,
                index=I32(index.registers.item()),
                thread=lanes.thread_index(),
                words=(),
                raw_inputs=tuple(memories[n_in : n_in + n_raw]),
                raw_outputs=tuple(memories[n_in + n_raw : -1]),
                scratch=memories[-1],
                scratch_start=(step % 2) * half,
            )
            words = tuple(
                tile.read(memory, unit.swizzle, unit.words_per_run(tiling.channels))
                for memory, unit in zip(memories[:n_in], units, strict=True)
            )
            if not exchanged:
                have_read(step, step + buffers < I32(count.registers.item()))
            body(dataclasses.replace(tile, words=words))

        @plgpu.inline_mgpu(arg_types=(plgpu.Layout.WG_SPLAT(()),))
        def wait_for_readers(_, step):
            first_warp = lanes.thread_index() < WARP
            number = number_of(I32(step.registers.item()) - 1)
            lanes.when(first_warp, lambda: lanes.wait(number, threads))

        def refill(step):
            """Loads into the buffer of the tile before, which everybody has read."""
            if not exchanged:
                pl.when(step > 0)(lambda: wait_for_readers(step))
            load(step + buffers - 1)

        @pl.loop(0, count)
        def _(step):
            pl.when(leader & (step + buffers - 1 < count))(lambda: refill(step))
            slot = lax.rem(step, buffers)
            plgpu.barrier_wait(loaded.at[slot])
            work(
                step,
                count,
                block + step * grid,
                *(ref.at[slot] for ref in in_smem),
                *raw,
                *written,
                scratch,
            )

    kernel.__name__ = name
    return plgpu.kernel(
        kernel,
        out_type=tuple(outputs),
        grid=(grid,),
        grid_names=("block",),
        num_threads=tiling.warpgroups,
        thread_name="warpgroup",
        scratch_types=(
            *(unit.scratch(buffers, rows) for unit in units),
            plgpu.SMEM((max(1, 2 * half // 4),), jnp.int32),
            plgpu.Barrier(num_arrivals=n_in, num_barriers=buffers),
        ),
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
        kernel_name=name,
    )(
        *(x.reshape(total, *unit.shape) for x, unit in zip(inputs, units, strict=True)),
        *raw_inputs,
    )
