"""How much each block of keys adds: LiteAttention's statistic, inside the kernel."""

from __future__ import annotations

from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental.mosaic.gpu import utils
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm, vector

from pallas_kernels.attention.tiles import ROWS
from pallas_kernels.row_tiles import lanes
from pallas_kernels.row_tiles.lanes import F32, I32, Memory

_WARP = 32


def _scalar(register: ir.Value) -> F32:
    """One value of a thread, which may be a vector of one."""
    if isinstance(register.type, ir.VectorType):
        register = vector.extract(register, [], [0])
    return F32(register)


def raise_to(table: Any, block: jax.Array, ratios: jax.Array) -> None:
    """Raises `table[block]` to the largest of a warpgroup's ratios.

    Args:
        table: float32 in shared memory, zeros at first; all warpgroups raise it.
        block: which place.
        ratios: one per row, not negative.
    """

    @plgpu.inline_mgpu(
        arg_types=(
            plgpu.RefType(),
            plgpu.Layout.WG_SPLAT(()),
            plgpu.Layout.WGMMA.reduce(1),
        )
    )
    def work(_, table_ref, place, values):
        largest = lanes.tree(
            [_scalar(register) for register in values.registers.flat], F32.maximum
        )
        # Lanes 4 g + q hold row g.
        for distance in (4, 8, 16):
            largest = largest.maximum(lanes.exchange(largest, distance))
        i32 = ir.IntegerType.get_signless(32)
        # Shared memory has addresses of 32 bits.
        address = llvm.ptrtoint(i32, Memory.of(table_ref).pointer)
        offset = I32(address) + I32(place.registers.item()) * 4

        def store() -> None:
            # Floats that are not negative are ordered as integers.
            utils.inline_ptx(
                "red.shared.max.u32 [$0], $1;",
                offset.value,
                largest.bits().value,
                has_side_effects=True,
            )

        lanes.when((lanes.thread_index() % _WARP).equals(0), store)

    work(table, block, ratios)


def ratios_of(
    block_sums: jax.Array, totals: jax.Array, first_row: jax.Array, q_tokens: int
) -> jax.Array:
    """Weights of a block over those of the blocks before it, per row.

    Args:
        block_sums: partial row sums of the block.
        totals: partial row sums of what came before.
        first_row: of the warpgroup.
        q_tokens: rows from here on do not count.
    """
    ratios = block_sums.sum(axis=1) / totals.sum(axis=1)
    row = plgpu.broadcasted_iota(
        jnp.int32, (ROWS,), 0, layout=plgpu.Layout.WGMMA.reduce(1)
    )
    return jnp.where(row + first_row < q_tokens, ratios, lax.full_like(ratios, 0.0))
