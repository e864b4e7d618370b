"""A computing warpgroup of the attention kernel: 64 rows of q, block after block."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention.rises import raise_to, ratios_of
from pallas_kernels.attention.softmax import (
    SUM_COLUMNS,
    Exponents,
    no_sums,
    probabilities,
    rows,
)
from pallas_kernels.attention.tiles import ROWS
from pallas_kernels.attention.work import Work

# With a fixed reference point, probabilities are smaller by this many powers of two:
# room for later blocks to exceed the first. Float32 and bfloat16 lose no precision.
_HEADROOM = 40.0
# Least reference point: a block whose keys are all hidden has no largest score.
_LOWEST = -1e30


class _Carry(NamedTuple):
    """From one block to the next: the products with V come one block later.

    Attributes:
        p: probabilities of the block before, in the dtype of the values.
        reference: what is subtracted from the exponents, per row.
        totals: partial row sums.
    """

    p: jax.Array
    reference: jax.Array
    totals: jax.Array


class Attending:
    """Attention of one warpgroup's rows.

    Args:
        work: which rows.
        row_scales: of the queries in 8 bits, else None.
        out_ref: accumulator of the output.
    """

    def __init__(self, work: Work, row_scales: jax.Array | None, out_ref: Any) -> None:
        problem = work.problem
        self._work, self._memory, self._out = work, work.memory, out_ref
        self._problem, self._tile = problem, problem.tile
        self._q = work.memory["q"].at[work.warpgroup]
        self._first_row = work.q_tile * problem.tile.block_rows + work.warpgroup * ROWS
        self._scores_type = jnp.int32 if problem.quantized else jnp.float32
        self._exponents = Exponents(
            memory=work.memory,
            block_kv=problem.tile.block_kv,
            scale_tokens=problem.scale_tokens,
            factor=problem.factor,
            row_scales=row_scales,
            valid=0 if problem.lengths else problem.tail,
        )

    def run(self) -> jax.Array:
        """Fills the accumulator; returns the row sums."""
        walk = self._counted if self._problem.counted else self._dense
        carry, slot = walk()
        self._add_values(slot, carry.p)
        return carry.totals.sum(axis=1)

    def _take_turn(self) -> None:
        if self._tile.turns:
            plgpu.barrier_wait(self._memory["turn"].at[self._work.warpgroup])

    def _end_turn(self) -> None:
        if self._tile.turns:
            warpgroups = jnp.int32(self._tile.warpgroups)
            following = lax.rem(self._work.warpgroup + 1, warpgroups)
            plgpu.barrier_arrive(self._memory["turn"].at[following])

    def _part(self, name: str, slot, width: int):
        """The keys or values of a slot, of which a small group fills the first."""
        found = self._memory[name].at[slot]
        return found if width == self._tile.block_kv else found.at[pl.ds(0, width)]

    def _add_values(self, slot, p: jax.Array) -> None:
        plgpu.barrier_wait(self._memory["v_full"].at[slot])
        plgpu.wgmma(self._out, p, self._part("v", slot, p.shape[1]))

    def _visible(self, block, masked: bool):
        if not masked:
            return None
        return self._work.key_limit() - block * self._tile.block_kv

    def _first(self) -> _Carry:
        problem, memory, block_kv = self._problem, self._memory, self._tile.block_kv

        def product(scores_ref):
            self._take_turn()
            plgpu.wgmma(scores_ref, self._q, memory["k"].at[0].T)
            self._end_turn()
            return scores_ref[...]

        block = self._work.block(jnp.int32(0))
        scales = self._exponents.scales(block)
        plgpu.barrier_wait(memory["k_full"].at[0])
        accumulator = plgpu.ACC((ROWS, block_kv), self._scores_type)
        scores = pl.run_scoped(product, accumulator)
        plgpu.barrier_arrive(memory["k_empty"].at[0])
        # A list may be that of the last block alone.
        only = problem.kv_blocks == 1 or problem.counted
        visible = self._visible(block, bool(problem.masked_blocks and only))
        x = self._exponents.of_keys(scores, scales, visible)
        reference = x.max(axis=1)
        if problem.list_width and problem.lengths:
            reference = jnp.maximum(reference, _LOWEST)
        if not self._tile.online:
            reference = reference + _HEADROOM
        p, totals = probabilities(x, reference, no_sums())
        return _Carry(p.astype(problem.dtype), reference, totals)

    def _next(
        self,
        slot: jax.Array | int,
        carry: _Carry,
        exponents: Callable[[jax.Array], jax.Array],
        width: int,
        block: jax.Array | None = None,
    ) -> _Carry:
        """One block: its scores, the values of the block before it, softmax.

        Args:
            slot: of the block.
            carry: of the block before.
            exponents: of the block's scores; what it reads of shared memory it reads
                after the products: before them, it would hold them up.
            width: keys of the block.
            block: its number, where what it adds is measured.
        """
        memory, stages = self._memory, self._tile.stages
        p, reference, totals = carry
        previous = (slot + stages - 1) % stages
        plgpu.barrier_wait(memory["k_full"].at[slot])
        self._take_turn()

        def products(scores_ref):
            plgpu.wgmma(scores_ref, self._q, self._part("k", slot, width).T)
            self._add_values(previous, p)
            self._end_turn()
            return plgpu.wgmma_accumulator_load(scores_ref, wait_n=1)

        accumulator = plgpu.ACC((ROWS, width), self._scores_type)
        scores = lax.optimization_barrier(pl.run_scoped(products, accumulator))
        plgpu.barrier_arrive(memory["k_empty"].at[slot])
        x = exponents(scores)
        alpha = None
        if self._tile.online:
            following = jnp.maximum(reference, x.max(axis=1))
            alpha = jnp.exp2(reference - following)
            reference = following
            totals = totals * rows(alpha, SUM_COLUMNS)
        if block is None:
            p, totals = probabilities(x, reference, totals)
        else:
            p, added = probabilities(x, reference, no_sums())
            ratios = ratios_of(added, totals, self._first_row, self._problem.shape[1])
            raise_to(memory["rises"], block, ratios)
            totals = totals + added
        p, totals = lax.optimization_barrier((p, totals))
        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(memory["v_empty"].at[previous])
        if alpha is not None:
            self._out[...] = self._out[...] * rows(alpha, self._problem.shape[3])
        # Registers that a product in flight reads may not be written, and the compiler
        # gives all rounded probabilities the same registers.
        return _Carry(p.astype(self._problem.dtype), reference, totals)

    def _block(
        self, step, carry: _Carry, *, slot: int | None = None, masked: bool = False
    ) -> _Carry:
        """A block of keys, `masked` if it may be the last one."""
        place = self._work.slot(step) if slot is None else slot
        visible = None
        if masked:
            visible = self._visible(self._work.block(step), masked)

        def exponents(scores):
            scales = []
            if self._problem.quantized:
                scales = self._exponents.scales(self._work.block(step))
            return self._exponents.of_keys(scores, scales, visible)

        measured = self._work.block(step) if "rises" in self._memory else None
        return self._next(place, carry, exponents, self._tile.block_kv, measured)

    def _proxies(self, step, carry: _Carry, *, first, width: int) -> _Carry:
        """A group of proxies; `first` is the step of the first group."""

        def exponents(scores):
            return self._exponents.of_proxies(scores, step - first)

        return self._next(self._work.slot(step), carry, exponents, width)

    def _counted(self) -> tuple[_Carry, jax.Array]:
        problem = self._problem
        count = self._work.exact_steps()
        # Numbers ascend: only the last of a list can be the last of the keys.
        unmasked = lax.max(count - problem.masked_blocks, jnp.int32(1))
        carry = lax.fori_loop(jnp.int32(1), unmasked, self._block, self._first())
        if problem.masked_blocks:
            masked = functools.partial(self._block, masked=True)
            carry = lax.fori_loop(unmasked, count, masked, carry)
        groups, rest = problem.proxies
        steps = count + groups
        if groups:
            whole = functools.partial(
                self._proxies, first=count, width=self._tile.block_kv
            )
            carry = lax.fori_loop(count, steps, whole, carry)
        if rest:
            carry = self._proxies(steps, carry, first=count, width=rest)
            steps = steps + 1
        return carry, self._work.slot(steps - 1)

    def _dense(self) -> tuple[_Carry, int]:
        problem = self._problem
        last = problem.kv_blocks - 1
        slot = last % self._tile.stages
        tail = bool(problem.tail and last)
        carry = self._first()
        if problem.kv_blocks - tail > 1:
            carry = lax.fori_loop(1, problem.kv_blocks - tail, self._block, carry)
        if tail:
            carry = self._block(jnp.int32(last), carry, slot=slot, masked=True)
        return carry, slot
