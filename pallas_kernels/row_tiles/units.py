"""How an operand lies in a tile's shared memory."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

SWIZZLE_PERIOD = 1024  # bytes
RUN = 16  # neighbouring channels in one thread


@dataclasses.dataclass(frozen=True)
class Units:
    """An operand [M, columns] as [M, count, width], one swizzled unit in the last axis.

    In a tile's shared memory the units of one column lie together, row after row.
    """

    columns: int
    dtype: jnp.dtype

    @classmethod
    def of(cls, operand: jax.Array) -> "Units":
        return cls(operand.shape[1], jnp.dtype(operand.dtype))

    @property
    def swizzle(self) -> int:
        """Bytes of a unit."""
        return 128 if self.columns * self.dtype.itemsize % 128 == 0 else 64

    @property
    def shape(self) -> tuple[int, int]:
        width = self.swizzle // self.dtype.itemsize
        return self.columns // width, width

    @property
    def transforms(self) -> tuple[plgpu.SwizzleTransform]:
        return (plgpu.SwizzleTransform(self.swizzle),)

    def words_per_run(self, channels: int) -> int:
        """32-bit words of 16 channels."""
        return RUN * self.columns * self.dtype.itemsize // channels // 4

    def padded_count(self, rows: int) -> int:
        """Units that a buffer has room for, so that the next one stays aligned."""
        per_period = max(1, SWIZZLE_PERIOD // (rows * self.swizzle))
        return -(-self.shape[0] // per_period) * per_period

    def scratch(self, slots: int, rows: int):
        """Shared memory for tiles."""
        shape = (slots, self.padded_count(rows), rows, self.shape[1])
        return plgpu.SMEM(shape, self.dtype, transforms=self.transforms)
