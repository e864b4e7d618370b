"""How a GEMM is cut into tiles, and which operands its epilogue reads."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp

# Hopper: bytes of shared memory that one block may ask for, less barriers and what
# alignment costs.
SHARED_MEMORY_BYTES = 232_448 - 1_152

# Rows of one store of the epilogue, per warpgroup.
STORE_ROWS = 64

# A wgmma operand row in shared memory is one swizzle atom of 128 bytes.
SWIZZLE_BYTES = 128

COMPUTE_WARPGROUPS = 2


@dataclasses.dataclass(frozen=True)
class Tile:
    """How one thread block (or cluster of two) computes its share of the output.

    Attributes:
        rows: rows of the output tile of one warpgroup, a multiple of 64.
        columns: columns of the output tile of one warpgroup.
        depth: elements of K per pipeline stage, a multiple of one 128-byte row.
        stages: pipeline stages in shared memory.
        split: how the two compute warpgroups share the block's tile: `"rows"`
            (they share W), `"columns"` (they share A), or `"alternate"` (each
            computes whole tiles in turn, so that one's epilogue hides behind the
            other's products).
        cluster: `None`, or the dimension along which two blocks stand side by side
            and share, by multicast, the operand that does not vary along it.
        band: tiles of the minor dimension that are walked before the major one
            advances; keeps the working set of all blocks in L2.
        minor: the dimension walked inside a band.
        in_flight: wgmma groups left running when a stage is released (0 or 1).
        store: columns of one store of the epilogue.
    """

    rows: int = 128
    columns: int = 128
    depth: int = 128
    stages: int = 4
    split: Literal["rows", "columns", "alternate"] = "columns"
    cluster: Literal["rows", "columns"] | None = None
    band: int = 8
    minor: Literal["rows", "columns"] = "rows"
    in_flight: int = 1
    store: int = 64

    @property
    def block_rows(self) -> int:
        """Rows of one block's output tile."""
        return self.rows * (2 if self.split == "rows" else 1)

    @property
    def block_columns(self) -> int:
        """Columns of one block's output tile."""
        return self.columns * (2 if self.split == "columns" else 1)

    @property
    def cluster_size(self) -> int:
        """Thread blocks per cluster."""
        return 1 if self.cluster is None else 2

    @property
    def cluster_rows(self) -> int:
        """Rows of the output tile of one cluster."""
        return self.block_rows * (2 if self.cluster == "rows" else 1)

    @property
    def cluster_columns(self) -> int:
        """Columns of the output tile of one cluster."""
        return self.block_columns * (2 if self.cluster == "columns" else 1)

    def store_columns(self, n: int, out_bytes: int) -> int:
        """Columns per store: at most one swizzled row, and a divisor of N.

        TMA's tiled view needs whole tiles.
        """
        return math.gcd(n, min(self.store, SWIZZLE_BYTES // out_bytes))

    def fitted(
        self, epilogue: Epilogue, n: int, operand_bytes: int, out_bytes: int
    ) -> Tile:
        """The same tile with as many stages as shared memory holds, at most its own."""
        columns = self.store_columns(n, out_bytes)
        slots = self.slots(self.chunks(columns), epilogue)
        used = COMPUTE_WARPGROUPS * slots * STORE_ROWS * columns * out_bytes
        used += (
            COMPUTE_WARPGROUPS
            * 4
            * (
                self.rows * epilogue.row_scale
                + self.columns * (epilogue.column_scale + epilogue.bias)
                + self.columns * epilogue.gate * (1 + (epilogue.text_rows > 0))
            )
        )
        stage = (self.block_rows + self.block_columns) * self.depth * operand_bytes
        stages = min(self.stages, (SHARED_MEMORY_BYTES - used) // stage)
        if stages < 2:
            raise ValueError(
                f"{self} needs {used + 2 * stage} bytes of shared memory for "
                f"{epilogue}, more than {SHARED_MEMORY_BYTES}"
            )
        return dataclasses.replace(self, stages=stages)

    def slots(self, chunks: int, epilogue: Epilogue) -> int:
        """Store buffers per warpgroup; a residual arrives in them two chunks ahead."""
        return min(3 if epilogue.residual else 2, chunks)

    def chunks(self, store_columns: int) -> int:
        """Number of stores that one warpgroup's tile takes."""
        return (self.rows // STORE_ROWS) * (self.columns // store_columns)


@dataclasses.dataclass(frozen=True)
class Epilogue:
    """What is done to an accumulator before it is stored (all in float32).

    y = acc * row_scale * column_scale + bias; then the activation; then, with a
    residual, residual + gate * y where the gate of the first `text_rows` rows of
    each batch entry is another vector.

    Attributes:
        row_scale: whether there is a scale per row of A.
        column_scale: whether there is a scale per row of W (column of the output).
        scalar_scale: whether there is one scale for the whole product.
        bias: whether a bias per column is added.
        activation: `None` or `"gelu_tanh"`.
        residual: whether a residual of the output's shape is added.
        gate: whether the product is gated per column before the residual is added.
        text_rows: rows at the start of each batch entry that use the text gate.
    """

    row_scale: bool = True
    column_scale: bool = True
    scalar_scale: bool = False
    bias: bool = False
    activation: Literal["gelu_tanh"] | None = None
    residual: bool = False
    gate: bool = False
    text_rows: int = 0


def padded(size: int, multiple: int) -> int:
    """`size` rounded up to a multiple."""
    return -(-size // multiple) * multiple


def operand_depth_multiple(dtype: jnp.dtype) -> int:
    """Elements of K in one 128-byte row of shared memory."""
    return SWIZZLE_BYTES // jnp.dtype(dtype).itemsize
