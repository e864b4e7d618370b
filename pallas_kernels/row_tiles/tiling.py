"""How rows of K channels are spread over the threads of a block."""

import dataclasses

BLOCK = 128  # channels of a Hadamard block
SLOTS = 16  # blocks of 128 channels per warp: the rows of its matrix products
WARP = 32
WARPGROUP = 128
MAX_WARPS = 12
MAX_ROWS = 8


@dataclasses.dataclass(frozen=True)
class RowTiling:
    """A tile of `rows` rows by `channels` channels.

    A warp holds 16 slots, each a block of 128 channels of one row; a thread holds a
    quarter of the channels of two slots of one row (see `loop.Tile`).

    Attributes:
      rows: 1, 2, 4 or 8.
      channels: K, a multiple of 128.
      buffers: input tiles in shared memory, loaded ahead.
      blocks_per_sm: thread blocks that share a multiprocessor.
    """

    rows: int
    channels: int
    buffers: int = 2
    blocks_per_sm: int = 1

    @property
    def blocks(self) -> int:
        """Blocks of 128 channels per row."""
        return self.channels // BLOCK

    @property
    def warpgroups(self) -> int:
        """Groups of four warps that a thread block has."""
        return -(-self.rows * self.blocks // (SLOTS * 4))

    @property
    def warps(self) -> int:
        """Warps that a thread block has."""
        return self.warpgroups * WARPGROUP // WARP

    @property
    def ragged(self) -> bool:
        """Whether some slots hold no channels."""
        return self.rows * self.blocks != self.warps * SLOTS


def choose_tiling(
    channels: int, shared_bytes_per_channel: float = 2.0, shared_bytes: int = 216 * 1024
) -> RowTiling:
    """The tiling that leaves the fewest slots empty; among equals the largest.

    Args:
      channels: K.
      shared_bytes_per_channel: of one buffer, over all inputs.
      shared_bytes: what two buffers may take together.

    Raises:
      NotImplementedError: K is not a multiple of 128, or one row is too long.
    """
    if channels % BLOCK or channels <= 0:
        raise NotImplementedError(
            f"row kernels need K to be a multiple of {BLOCK}, found K = {channels}"
        )
    options = []
    rows = 1
    while rows <= MAX_ROWS:
        tiling = RowTiling(rows, channels)
        needed = tiling.buffers * rows * channels * shared_bytes_per_channel
        if tiling.warps <= MAX_WARPS and needed <= shared_bytes:
            fill = rows * tiling.blocks / (tiling.warps * SLOTS)
            options.append((fill, rows, tiling))
        rows *= 2
    if not options:
        raise NotImplementedError(
            f"row kernels hold a whole row in {MAX_WARPS} warps and {shared_bytes} "
            f"bytes of shared memory, found K = {channels}"
        )
    return max(options, key=lambda option: option[:2])[2]
