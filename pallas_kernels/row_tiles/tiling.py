"""How rows of K channels are spread over the threads of a block."""

import dataclasses

from pallas_kernels.row_tiles.lanes import CHANNELS, WARP

WARPGROUP = 128
MAX_THREADS = 384
MAX_ROWS = 16


@dataclasses.dataclass(frozen=True)
class RowTiling:
    """A tile of `rows` rows by `channels` channels, 64 channels per thread.

    Thread t holds segment t // rows of row t % rows, so that a unit of 128 bytes of
    bfloat16 in the tile's shared memory belongs to exactly one thread and neighbouring
    threads never meet in one bank.

    Attributes:
      rows: a power of two.
      channels: K, a multiple of 128.
      buffers: input tiles in shared memory, loaded ahead.
      blocks_per_sm: blocks that share a multiprocessor.
    """

    rows: int
    channels: int
    buffers: int = 2
    blocks_per_sm: int = 1

    @property
    def segments(self) -> int:
        """Threads per row."""
        return self.channels // CHANNELS

    @property
    def active(self) -> int:
        """Threads that hold channels."""
        return self.rows * self.segments

    @property
    def warpgroups(self) -> int:
        return -(-self.active // WARPGROUP)

    @property
    def warps(self) -> int:
        return self.warpgroups * WARPGROUP // WARP


def choose_tiling(channels: int, max_threads: int = MAX_THREADS) -> RowTiling:
    """The tiling that leaves the fewest threads idle; among equals the largest.

    Raises:
      NotImplementedError: K is not a multiple of 128 or one row needs too many threads.
    """
    if channels % 128 or channels <= 0:
        raise NotImplementedError(
            f"row kernels need K to be a multiple of 128, found K = {channels}"
        )
    options = []
    rows = 1
    while rows <= MAX_ROWS and rows * channels // CHANNELS <= max_threads:
        tiling = RowTiling(rows, channels)
        fill = tiling.active / (tiling.warpgroups * WARPGROUP)
        options.append((fill, tiling.active, tiling))
        rows *= 2
    if not options:
        raise NotImplementedError(
            f"row kernels hold a row in {max_threads} threads of {CHANNELS} channels, "
            f"found K = {channels}"
        )
    return max(options, key=lambda option: option[:2])[2]
