"""The softmax of the attention kernel: scores in registers to probabilities."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention.tiles import ROWS

# Row sums are kept as partial sums of this many columns: one per thread.
SUM_COLUMNS = 8
# Columns of proxies whose biases are in registers at once.
_PROXY_COLUMNS = 32


def rows(vector: jax.Array, width: int) -> jax.Array:
    """A number per row, for all of its columns."""
    return lax.broadcast_in_dim(vector, (ROWS, width), [0])


def _columns(x: jax.Array, start: int, stop: int) -> jax.Array:
    return lax.slice(x, (0, start), (ROWS, stop))


def no_sums() -> jax.Array:
    """Partial row sums of nothing."""
    return plgpu.layout_cast(
        jnp.zeros((ROWS, SUM_COLUMNS), jnp.float32), plgpu.Layout.WGMMA
    )


def probabilities(
    x: jax.Array, reference: jax.Array, totals: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """2^(x - reference), and the partial row sums with them.

    Sums stay spread over the threads that hold the columns; adding them up across
    threads waits until the end.
    """
    p = jnp.exp2(x - rows(reference, x.shape[1]))
    for start in range(0, x.shape[1], SUM_COLUMNS):
        totals = totals + _columns(p, start, start + SUM_COLUMNS)
    return p, totals


@dataclasses.dataclass(frozen=True)
class Exponents:
    """Products of queries and keys to exponents of two, for one warpgroup.

    Attributes:
        memory: shared memory by name.
        block_kv: keys of a block.
        scale_tokens: keys that share a scale, with scores in 8 bits.
        factor: of the scores in 16 bits.
        row_scales: of the queries in 8 bits; None in 16.
        valid: keys of the last block where it is partial.
    """

    memory: dict[str, Any]
    block_kv: int
    scale_tokens: int
    factor: float
    row_scales: jax.Array | None
    valid: int

    def scales(self, block: jax.Array | int) -> list[jax.Array]:
        """Of the keys of a block in 8 bits, in order; nothing in 16."""
        if self.row_scales is None:
            return []
        width = math.gcd(self.block_kv, self.scale_tokens)
        return [
            self.memory["k_scales"][
                lax.div(block * self.block_kv + start, self.scale_tokens)
            ]
            for start in range(0, self.block_kv, width)
        ]

    def of_keys(
        self,
        scores: jax.Array,
        scales: list[jax.Array],
        visible: jax.Array | int | None = None,
    ) -> jax.Array:
        """Of a block of keys.

        Args:
            scores: the products.
            scales: of the block.
            visible: how many of the keys count, where some may not.
        """
        if self.row_scales is None:
            x = scores * self.factor
        else:
            width = self.block_kv // len(scales)
            parts = [
                _columns(scores, i * width, (i + 1) * width).astype(jnp.float32)
                * rows(self.row_scales * scale, width)
                for i, scale in enumerate(scales)
            ]
            x = parts[0] if len(parts) == 1 else lax.concatenate(parts, 1)
        return x if visible is None else self._hidden(x, visible)

    def _hidden(self, x: jax.Array, visible: jax.Array | int) -> jax.Array:
        """Minus infinity for keys that do not count; only the last columns may not."""
        # A block has at least so many keys: no need to look at those columns.
        sure = self.valid // SUM_COLUMNS * SUM_COLUMNS
        width = self.block_kv - sure
        column = plgpu.broadcasted_iota(
            jnp.int32, (ROWS, width), 1, layout=plgpu.Layout.WGMMA
        )
        last = _columns(x, sure, self.block_kv)
        last = jnp.where(column < visible - sure, last, -jnp.inf)
        return lax.concatenate([_columns(x, 0, sure), last], 1) if sure else last

    def of_proxies(self, scores: jax.Array, group: jax.Array | int) -> jax.Array:
        """Of a group of proxies: each has a bias for its keys."""
        parts = []
        columns = scores.shape[1]
        width = min(columns, _PROXY_COLUMNS)
        factors = None
        if self.row_scales is not None:
            factors = rows(self.row_scales * self.memory["proxy_scales"][group], width)
        for start in range(0, columns, width):
            bias = plgpu.load(
                self.memory["proxy_bias"].at[
                    pl.ds(group * self.block_kv + start, width)
                ],
                layout=plgpu.Layout.WGMMA.reduce(0),
                optimized=False,
            )
            x = _columns(scores, start, start + width).astype(jnp.float32)
            x = x * (self.factor if factors is None else factors)
            parts.append(x + lax.broadcast_in_dim(bias, (ROWS, width), [1]))
        return parts[0] if len(parts) == 1 else lax.concatenate(parts, 1)
