"""The tile of each shape class on Hopper.

Measured on one H200 at M = 17,776; `benchmarks/results/h200/gemm_tune.json` holds the
record of each row, `python -m benchmarks.kernels.suite --tune` makes it again.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from pallas_kernels.gemm.config import SWIZZLE_BYTES, Epilogue, Tile, padded

# Taking turns hides the epilogue of one warpgroup behind the products of the other;
# 192 columns move 17% fewer operand bytes per product than 128.
_TURNS_192 = Tile(rows=128, columns=192, stages=5, split="alternate", store=64)
_TURNS_128 = Tile(rows=128, columns=128, stages=6, split="alternate", store=64)

# With a residual, narrower stores leave registers for the second set of gates.
_RESIDUAL_STORE = 32

# Columns computed in vain that cost more than the wider tile gains.
_MOST_WASTE = 1.05


def choose(dtype, n: int, epilogue: Epilogue) -> Tile:
    """The tile for products with `n` columns; M and K changed no choice.

    Args:
        dtype: the dtype of the operands.
        n: rows of W.
        epilogue: what follows.

    Returns:
        A tile whose stages still have to be fitted to shared memory.
    """
    wide = padded(n, _TURNS_192.columns) <= _MOST_WASTE * n
    tile = _TURNS_192 if wide else _TURNS_128
    return dataclasses.replace(
        tile,
        depth=SWIZZLE_BYTES // jnp.dtype(dtype).itemsize,
        store=_RESIDUAL_STORE if epilogue.residual else tile.store,
    )
