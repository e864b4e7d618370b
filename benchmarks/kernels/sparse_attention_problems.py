"""Attention of real networks with the parts that are timed, as functions of arrays."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels.attention import inputs, relative_error
from pallas_kernels.attention import (
    BlockGrid,
    BlockSelection,
    block_grid,
    centroids,
    choose,
    mosaic_gpu,
    quantize_qkv,
    quantized_centroids,
    sparse_reference,
)
from pallas_kernels.attention.shapes import SPARSE

# Of a probe with the same kernel and lists: time over dense = _FIXED + density. Proxies
# add their groups of blocks; choosing reads q, k and v once and has a few small steps.
_FIXED = 0.037
_READ_TBPS = 3.5
_SMALL_STEPS_MS = 0.06


@dataclasses.dataclass(frozen=True)
class Problem:
    """One network's attention, in one precision.

    `blocks`: rows and keys of the kernel's tile; None is the one it would choose.
    """

    network: str
    tokens: int
    heads: int
    head_dim: int
    text: tuple[int, int]
    tokens_per_frame: int
    precision: Literal["int8", "bf16"]
    blocks: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of q, k and v."""
        return 1, self.tokens, self.heads, self.head_dim

    @property
    def grid(self) -> BlockGrid:
        """Of the kernel's tile."""
        grid = block_grid(self.shape, precision=self.precision, text=self.text)
        if self.blocks is None:
            return grid
        rows, keys = self.blocks
        return dataclasses.replace(grid, block_rows=rows, block_kv=keys)

    def operands(self) -> tuple:
        """What attention takes: one pytree for 8 bits, q, k and v for 16."""
        _, tokens, heads, head_dim = self.shape
        made = inputs((1, tokens, tokens, heads, head_dim), 7, realistic=False)
        if self.precision == "int8":
            return (jax.jit(quantize_qkv)(*made),)
        return made

    def centroids(self, *operands, implementation: str | None = None):
        """Of the operands."""
        if self.precision == "int8":
            (made,) = operands
            return quantized_centroids(made, self.grid, implementation=implementation)
        q, k, v = operands
        return centroids(q, k, v, self.grid, implementation=implementation)

    def choose(self, made, tau, implementation: str | None = None) -> BlockSelection:
        """The threshold test."""
        return choose.by_threshold(made, self.grid, tau, implementation=implementation)

    def attend(self, selection, *operands, guard: bool = False):
        """The kernel."""
        if self.precision == "int8":
            return mosaic_gpu.quantized_attention(
                *operands, selection=selection, guard=guard
            )
        return mosaic_gpu.attention(
            *operands,
            scale=self.head_dim**-0.5,
            precision="bf16",
            selection=selection,
            guard=guard,
        )

    def drop(self, selection, *operands):
        """The kernel without proxies."""
        return self.attend(dataclasses.replace(selection, centroids=None), *operands)

    def choice(self, tau, *operands, implementation: str | None = None):
        """Centroids and lists."""
        made = self.centroids(*operands, implementation=implementation)
        return self.choose(made, tau, implementation)

    def whole(self, tau, *operands):
        """Choosing and attention, the overflow guard included: what a network runs."""
        return self.attend(self.choice(tau, *operands), *operands, guard=True)

    def tau(self, share: float) -> float:
        """The threshold that random normal inputs need for a share of the blocks."""
        if share >= 1:
            return -np.inf
        grid = self.grid
        fixed = float((grid.always() | grid.near()).mean())
        rest = max((share - fixed) / (1 - fixed), 1e-3)
        return statistics.NormalDist().inv_cdf(1 - rest)

    def predicted(self, dense_ms: float, density: float, part: str) -> float:
        """Milliseconds expected before the run."""
        grid = self.grid
        wide = 2 if self.precision == "int8" else 3
        values = self.tokens * self.heads * self.head_dim
        choice = values * 2 * wide / _READ_TBPS / 1e9 + _SMALL_STEPS_MS
        proxies = -(-grid.kv_blocks // grid.block_kv) / grid.kv_blocks
        exact = dense_ms * (_FIXED + density)
        return {
            "dropped": exact,
            "centroids": exact + dense_ms * proxies,
            "whole": exact + dense_ms * proxies + choice,
            "choice": choice,
        }[part]


PRECISIONS: tuple[Literal["int8", "bf16"], ...] = ("int8", "bf16")
PROBLEMS = tuple(
    Problem(network, tokens, heads, head_dim, text, per_frame, precision)
    for precision in PRECISIONS
    for network, tokens, heads, head_dim, text, per_frame in SPARSE
)
# The other tile of 64 channels.
OTHER_TILES = tuple(
    dataclasses.replace(problem, blocks=(256, 64))
    for problem in PROBLEMS
    if problem.head_dim == 64
)


def programs(problem: Problem) -> dict[str, tuple[Callable, tuple]]:
    """Functions and the shapes that they take, by name."""
    operands = jax.eval_shape(problem.operands)
    tau = jax.ShapeDtypeStruct((), jnp.float32)
    made = jax.eval_shape(problem.centroids, *operands)
    selection = jax.eval_shape(problem.choice, tau, *operands)
    return {
        "choice": (problem.choice, (tau, *operands)),
        "dense": (functools.partial(problem.attend, None), operands),
        "centroids": (problem.attend, (selection, *operands)),
        "whole": (problem.whole, (tau, *operands)),
        "dropped": (problem.drop, (selection, *operands)),
        "choice: centroids": (problem.centroids, operands),
        "choice: lists": (problem.choose, (made, tau)),
        "choice by XLA": (
            functools.partial(problem.choice, implementation="reference"),
            (tau, *operands),
        ),
        "choice by XLA: centroids": (
            functools.partial(problem.centroids, implementation="reference"),
            operands,
        ),
    }


def rows_error(problem: Problem, selection: BlockSelection, operands, found) -> float:
    """Error of the first, a middle and the last tile of rows against the definition."""
    grid = problem.grid
    size = grid.block_rows
    tiles = [0, grid.q_tiles // 2, grid.q_tiles - 1]
    rows = np.concatenate(
        [np.arange(grid.q_tokens)[i * size : (i + 1) * size] for i in tiles]
    )
    part = dataclasses.replace(grid, q_tokens=len(rows), text=(0, 0))
    chosen = dataclasses.replace(
        selection,
        lists=selection.lists[:, :, np.array(tiles)],
        chosen=selection.chosen[:, :, np.array(tiles)],
        grid=part,
    )

    def expected(*operands):
        if problem.precision == "int8":
            (made,) = operands
            made = dataclasses.replace(
                made, q_values=made.q_values[:, rows], q_scales=made.q_scales[..., rows]
            )
            return sparse_reference.quantized_attention(made, chosen)
        q, k, v = operands
        return sparse_reference.attention(
            q[:, rows], k, v, chosen, scale=problem.head_dim**-0.5, precision="bf16"
        )

    return relative_error(found[:, rows], jax.jit(expected)(*operands))
