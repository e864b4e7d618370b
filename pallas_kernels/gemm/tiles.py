"""The tile of each shape class on Hopper."""

from __future__ import annotations

import jax.numpy as jnp

from pallas_kernels.gemm.config import Epilogue, Tile

# Measured on one H200 at M = 17,776 (benchmarks/results/h200/gemm_tune.json).
# Turns hide a tile's epilogue behind the other warpgroup's products; 192 columns move
# 17% fewer operand bytes per product than 128.
_TURNS_128 = Tile(rows=128, columns=128, stages=6, split="alternate")
_TURNS_192 = Tile(rows=128, columns=192, stages=5, split="alternate")


def choose(dtype, m: int, n: int, k: int, epilogue: Epilogue) -> Tile:
    """The tile for an `[m, k] x [n, k]` product.

    Args:
        dtype: of the operands.
        m: rows of A, all batch entries together.
        n: rows of W.
        k: contracted size.
        epilogue: what follows.

    Returns:
        A tile whose stages still have to be fitted to shared memory.
    """
    tile = _TURNS_128 if epilogue.residual or n % 192 else _TURNS_192
    elements = 128 // jnp.dtype(dtype).itemsize
    return Tile(
        rows=tile.rows,
        columns=tile.columns,
        depth=elements,
        stages=tile.stages,
        split=tile.split,
        store=tile.store,
    )
