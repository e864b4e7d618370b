"""Kernels over rows: one persistent tile loop, per-thread bodies in Mosaic GPU."""

from pallas_kernels.row_tiles.loop import Tile, row_kernel
from pallas_kernels.row_tiles.tiling import RowTiling, choose_tiling

__all__ = ["RowTiling", "Tile", "choose_tiling", "row_kernel"]
