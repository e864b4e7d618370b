"""Lists of chosen blocks from a mask, one warp per tile of queries (Hopper)."""

from __future__ import annotations

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental.mosaic.gpu import utils
from jaxlib.mlir import ir
from jaxtyping import Array, Int32, UInt8

from pallas_kernels.row_tiles import lanes
from pallas_kernels.row_tiles.lanes import I32, Memory

_WARPS, _WARP = 4, 32
_THREADS = _WARPS * _WARP


def _ptx(text: str, *operands: I32, shared: bool = False) -> I32:
    """PTX with one integer result, `shared` if all lanes of a warp must take part."""
    i32 = ir.IntegerType.get_signless(32)
    values = [operand.value for operand in operands]
    found = utils.inline_ptx(
        text,
        *values,
        result_types=i32,
        has_side_effects=shared,
        convergent=shared,
    )
    return I32(found)


def _ballot(number: I32) -> I32:
    """A bit per lane whose number is not 0."""
    return _ptx(
        "{ .reg .pred p; setp.ne.b32 p, $1, 0;"
        " vote.sync.ballot.b32 $0, p, 0xffffffff; }",
        number,
        shared=True,
    )


def _ones(word: I32) -> I32:
    return _ptx("popc.b32 $0, $1;", word)


def _list_row(
    row: I32, lane: I32, width: int, places: int, mask: Memory, out: Memory
) -> None:
    """What one lane does for one row."""
    below = (I32.of(1) << lane) - 1
    found = I32.of(0)
    for first in range(0, width, _WARP):
        block = lane + first
        exists = block < width
        cell = lanes.select(exists, row * width + block, I32.of(0))
        # The word that holds the byte, which is 0 or 1.
        word = mask.load(cell & 0xFFFFFFFC, 1)[0]
        chosen = (word >> ((cell & 3) << 3)) & 1
        chosen = lanes.select(exists, chosen, I32.of(0))
        bits = _ballot(chosen)
        place = row * places + found + _ones(bits & below)
        lanes.when(chosen.equals(1), lambda at=place, b=block: out.store(at * 4, [b]))
        found = found + _ones(bits)
    # Fillers, and the count in the last place, which no number has.
    for first in range(0, places, _WARP):
        place = lane + first
        value = lanes.select(place.equals(places - 1), found, I32.of(width))
        free = lanes.both(place < places, (found - 1) < place)
        lanes.when(
            free, lambda at=place, v=value: out.store((row * places + at) * 4, [v])
        )


def lists_of(
    mask: UInt8[Array, "rows width"], places: int
) -> Int32[Array, "rows places"]:
    """Numbers of the nonzero places of each row, fillers of `width`, and their count.

    Args:
        mask: zeros and ones; at least one in each row.
        places: of a list, more than `width`; the last one holds the count.

    Raises:
        NotImplementedError: a mask that is too large.
    """
    rows, width = mask.shape
    if rows * places >= 1 << 30:
        raise NotImplementedError(
            f"the kernel for lists takes fewer than 2^30 places, found {rows} rows of "
            f"{places}"
        )

    def kernel(mask_ref, out_ref):
        group = lax.axis_index("group")

        @plgpu.inline_mgpu(
            arg_types=(plgpu.Layout.WG_SPLAT(()), plgpu.RefType(), plgpu.RefType())
        )
        def work(_, own, mask_memory, out_memory):
            thread = lanes.thread_index()
            row = I32(own.registers.item()) * _WARPS + thread // _WARP
            # Warps beyond the last row repeat it: they store the same.
            row = lanes.select(row < rows, row, I32.of(rows - 1))
            _list_row(
                row,
                thread % _WARP,
                width,
                places,
                Memory.of(mask_memory),
                Memory.of(out_memory),
            )

        work(group, mask_ref, out_ref)

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((rows, places), jnp.int32),
        grid=(-(-rows // _WARPS),),
        grid_names=("group",),
        num_threads=1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
        kernel_name="block_lists",
    )(mask)
