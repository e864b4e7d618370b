"""What the warpgroups of a thread block know of its part of the attention."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention.lists import BlockLists
from pallas_kernels.attention.tiles import Tile


@dataclasses.dataclass(frozen=True)
class Problem:
    """One attention, as far as it is known when the kernel is compiled.

    Attributes:
        tile: how the work is cut.
        shape: of the queries.
        kv_tokens: keys that count.
        quantized: whether scores are of 8-bit operands.
        factor: of the scores in 16 bits, log2(e) included.
        scale_tokens: keys that share a scale, in 8 bits.
        dtype: of values and output.
        list_width: places of the lists of blocks, the last is their length; 0: none.
        proxies: groups of proxies as large as a block, and proxies of a smaller one.
        lengths: whether batch entries have numbers of keys of their own.
        cut_blocks: with both, how many of the last blocks of a list may hold keys
            beyond a length.
        full_tiles: first tile of queries whose list has all blocks, and the one after
            the last.
    """

    tile: Tile
    shape: tuple[int, ...]
    kv_tokens: int
    quantized: bool
    factor: float
    scale_tokens: int
    dtype: Any
    list_width: int
    proxies: tuple[int, int]
    lengths: bool
    cut_blocks: int
    full_tiles: tuple[int, int]

    @staticmethod
    def of(
        q: jax.Array,
        v: jax.Array,
        lists: BlockLists | None,
        *,
        tile: Tile,
        **options: Any,
    ) -> Problem:
        """Of these operands; `options` are the attributes that they do not tell."""
        width, proxies = 0, (0, 0)
        if lists is not None:
            width, proxies = lists.width, lists.groups(tile.block_kv)
        return Problem(
            tile=tile,
            shape=q.shape,
            quantized=q.dtype == jnp.int8,
            dtype=v.dtype,
            list_width=width,
            proxies=proxies,
            **options,
        )

    @property
    def counted(self) -> bool:
        """Whether the number of blocks is known only when the kernel runs."""
        return self.list_width > 0 or self.lengths

    @property
    def q_tiles(self) -> int:
        """Tiles of queries."""
        return pl.cdiv(self.shape[1], self.tile.block_rows)

    @property
    def kv_blocks(self) -> int:
        """Blocks of keys."""
        return pl.cdiv(self.kv_tokens, self.tile.block_kv)

    @property
    def tail(self) -> int:
        """Keys of the last block, if it is partial."""
        return self.kv_tokens % self.tile.block_kv

    @property
    def masked_blocks(self) -> int:
        """How many of the last blocks that are computed may be masked."""
        if not self.lengths:
            return int(self.tail > 0)
        return self.cut_blocks if self.list_width else 1

    def place(self, item: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Head and tile of queries of a thread block of a batch entry.

        Tiles that attend to all blocks come first: they take longest.
        """
        tiles = jnp.int32(self.q_tiles)
        start, stop = self.full_tiles
        full, heads = stop - start, self.shape[2]
        if not full or full == self.q_tiles:
            return lax.div(item, tiles), lax.rem(item, tiles)
        rest = item - heads * full
        others = tiles - full
        tile = lax.rem(rest, others)
        tile = jnp.where(tile >= start, tile + full, tile)
        early = rest < 0
        return (
            jnp.where(early, lax.div(item, jnp.int32(full)), lax.div(rest, others)),
            jnp.where(early, start + lax.rem(item, jnp.int32(full)), tile),
        )


@dataclasses.dataclass(frozen=True)
class Work:
    """One thread block's part.

    Attributes:
        problem: what all thread blocks share.
        source: arrays in global memory by name.
        memory: buffers and barriers in shared memory by name.
        entry, head, q_tile: which part.
        warpgroup: which warpgroup asks; the last one loads.
    """

    problem: Problem
    source: dict[str, Any]
    memory: dict[str, Any]
    entry: jax.Array
    head: jax.Array
    q_tile: jax.Array
    warpgroup: jax.Array

    def slot(self, step: jax.Array | int) -> jax.Array:
        """Stage of the pipeline of a step."""
        return lax.rem(jnp.int32(step), jnp.int32(self.problem.tile.stages))

    def wait_for_tables(self) -> None:
        """Scales and lists are in shared memory from here on."""
        if "tables_full" in self.memory:
            plgpu.barrier_wait(self.memory["tables_full"])

    def key_limit(self) -> jax.Array | int:
        """How many keys count; the tables must have arrived."""
        if not self.problem.lengths:
            return self.problem.kv_tokens
        return self.memory["key_lengths"][0]

    def exact_steps(self) -> jax.Array | int:
        """How many blocks are computed; the tables must have arrived."""
        problem = self.problem
        if problem.list_width:
            return self.memory["blocks"][problem.list_width - 1]
        if not problem.lengths:
            return problem.kv_blocks
        size = problem.tile.block_kv
        return lax.div(self.key_limit() + (size - 1), jnp.int32(size))

    def block(self, step: jax.Array) -> jax.Array:
        """Number of the block of keys that a step computes."""
        return self.memory["blocks"][step] if self.problem.list_width else step
