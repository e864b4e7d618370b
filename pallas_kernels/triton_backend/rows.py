"""How row operations are cut into tiles, and the front end as kernels take it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.row_tiles.front import Front
from pallas_kernels.triton_backend.calls import Launch
from pallas_kernels.triton_backend.devices import DeviceClass, device_class

# One row must fit the registers of a thread block.
_LARGEST_K = 16384


class RowShape(NamedTuple):
    """How many values a tile of rows has, at least, and how many a thread has.

    `programs` run on each multiprocessor, and take tiles in turn; one has at most
    `warps`, which leaves its threads the registers that a long row needs. With two
    `stages` Triton copies the next tile to shared memory meanwhile.
    """

    values: int
    per_thread: int
    programs: int
    warps: int = 16
    stages: int = 2


# None was tuned on a device. `python -m benchmarks.kernels.triton_kernels --only
# tune-rows` times candidates; Hopper's for block statistics reach 3.3 TB/s there.
SHAPES = {
    DeviceClass.AMPERE: RowShape(4096, 32, 8),
    DeviceClass.SMALL: RowShape(4096, 32, 6),
    DeviceClass.HOPPER: RowShape(4096, 32, 8),
    DeviceClass.BLACKWELL: RowShape(4096, 32, 8, 8),
}
# Of kernels that rotate: two rows make the 64 rows of blocks that a warp group
# multiplies by the Hadamard matrix, and the next rows wait in registers. Untimed.
ROTATING = {
    DeviceClass.AMPERE: RowShape(8192, 32, 4, stages=1),
    DeviceClass.SMALL: RowShape(8192, 32, 4, stages=1),
    DeviceClass.HOPPER: RowShape(8192, 32, 4, stages=1),
    DeviceClass.BLACKWELL: RowShape(8192, 32, 4, 8, stages=1),
}


class RowTiles(NamedTuple):
    """Tiles of rows: so many rows of so many channels (a power of two) each."""

    rows: int
    channels: int
    tiles: int
    programs: int
    launch: Launch


def row_tiles(
    m: int, k: int, shape: RowShape | None = None, *, rotating: bool = False
) -> RowTiles:
    """The tiles for [M, K]; `rotating` where rows pass `front.rotate`.

    Raises:
        NotImplementedError: rows that are too long.
    """
    if k > _LARGEST_K or not m * k:
        raise NotImplementedError(
            f"Triton row kernels take rows of at most {_LARGEST_K} values, found "
            f"[{m}, {k}]"
        )
    shape = shape or (ROTATING if rotating else SHAPES)[device_class()]
    channels = 1 << (k - 1).bit_length()
    rows = max(1, shape.values // channels)
    tiles = -(-m // rows)
    warps = max(1, min(shape.warps, rows * channels // (32 * shape.per_thread)))
    # Long rows leave room for fewer programs.
    at_once = max(1, shape.programs * 4 // max(warps, 4))
    programs = min(tiles, dispatch.multiprocessors() * at_once)
    return RowTiles(rows, channels, tiles, programs, Launch(warps, shape.stages))


def front_constants(front: Front, m: int, k: int, tiles: RowTiles) -> dict[str, Any]:
    """The `tl.constexpr` parameters of `front.activation` and the rotation.

    Raises:
        NotImplementedError: a rotation of channels that are no multiple of 128.
    """
    if front.rotation and k % front.rotation:
        raise NotImplementedError(
            f"Triton row kernels rotate multiples of {front.rotation} channels, found "
            f"{k}"
        )
    return {
        "M": m,
        "K": k,
        "K_PADDED": tiles.channels,
        "LAYER_NORM": front.layer_norm,
        "EPS": front.eps,
        "AFFINE": front.affine,
        "ROWS_PER_BATCH": front.rows_per_batch,
        "TEXT_ROWS": front.text_rows,
        "GELU": front.gelu,
        "ROTATED": front.rotation > 0,
        "ROWS": tiles.rows,
    }


def given(affine: jax.Array | None) -> jax.Array:
    """The packed affine map, or what stands in its place and is not read."""
    return jnp.zeros((1,), jnp.float16) if affine is None else affine


def stats_shape(tiles: RowTiles, wanted: bool) -> jax.ShapeDtypeStruct:
    """Sums and maxima of every tile; a place for them that is not written if none."""
    return jax.ShapeDtypeStruct((tiles.tiles if wanted else 1, 1, 2), jnp.float32)
