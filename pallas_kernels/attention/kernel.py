"""Attention on Hopper: one warpgroup loads keys and values, the others attend.

Each compute warpgroup holds 64 rows of q. The softmax is in base 2. By default its
reference point is fixed after the first block of keys (`Tile.online`), so that a block
costs one multiply-add and one exponential per score.
"""

from __future__ import annotations

import math

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention.attending import Attending
from pallas_kernels.attention.lists import BlockLists
from pallas_kernels.attention.loading import load
from pallas_kernels.attention.memory import copy_out, scratch_buffers
from pallas_kernels.attention.softmax import rows
from pallas_kernels.attention.tiles import ROWS, Tile
from pallas_kernels.attention.work import Problem, Work

_LOG2_E = math.log2(math.e)
# A row sum from which on the fixed reference point counts as overflown.
SUM_LIMIT = 2.0**100
_REGISTERS = {2: (232, 40), 3: (160, 32), 4: (112, 32)}
# Numbers of a row of key lengths, all the same: what one copy takes at least.
_LENGTH_COPIES = 8


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_scales: jax.Array | None = None,
    k_scales: jax.Array | None = None,
    lists: BlockLists | None = None,
    key_lengths: jax.Array | None = None,
    *,
    kv_tokens: int,
    scale: float,
    tile: Tile,
    scale_tokens: int = 0,
    cut_blocks: int = 1,
    full_tiles: tuple[int, int] = (0, 0),
    rises: bool = False,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """The kernel.

    Args:
        q: `[batch, q_tokens, heads, head_dim]`, 16-bit, or int8 with scales; tokens a
            multiple of 8, here and below.
        k: `[batch, kv_tokens, heads, head_dim]`, dtype of `q`.
        v: `[batch, kv_tokens, heads, head_dim]`, 16-bit.
        q_scales: `[batch, heads, q_tokens]` float32, log2(e) and `scale` included,
            padded to a multiple of the block's rows.
        k_scales: `[batch, heads, blocks]` float32, one per `scale_tokens` keys, padded
            to a multiple of 4.
        lists: the blocks of keys of each tile of queries; `None` is all of them.
        key_lengths: `[batch]` int32, at least 1: how many keys of each batch entry
            count; `None` is `kv_tokens`.
        kv_tokens: how many of the keys count; the rest only fill tiles of 8.
        scale: factor of the scores, unused with scales.
        tile: how the work is cut.
        scale_tokens: see `k_scales`.
        cut_blocks: with `key_lengths`, how many of the last blocks of a list may hold
            keys beyond a length.
        full_tiles: first tile of queries whose list has all blocks, and the one after
            the last: those run first.
        rises: whether to say how much each block adds; with lists.
        interpret: run on the CPU by the Pallas interpreter.

    Returns:
        The output `[batch, q_tokens, heads, head_dim]` in the dtype of `v`, and the sum
        of each row's probabilities, `[batch, heads, padded q_tokens]`. A sum that is
        not below `SUM_LIMIT` means that the row overflowed. With `rises` also, for each
        block, the largest share over a tile's rows of its weights in those of the
        blocks before it, `[batch, heads, q_tiles, padded blocks]`: 0 for the first
        block of a list and for blocks that are not in it.
    """
    problem = Problem.of(
        q,
        v,
        lists,
        tile=tile,
        kv_tokens=kv_tokens,
        factor=scale * _LOG2_E,
        scale_tokens=scale_tokens,
        lengths=key_lengths is not None,
        cut_blocks=cut_blocks,
        full_tiles=full_tiles,
    )
    inputs = {"q": q, "k": k, "v": v}
    if q_scales is not None and k_scales is not None:
        inputs |= {"q_scales": q_scales, "k_scales": k_scales}
    if lists is not None:
        inputs |= lists.arrays()
    batch, _, heads, _ = q.shape
    if key_lengths is not None:
        rows_of_lengths = (batch, _LENGTH_COPIES)
        inputs["key_lengths"] = jnp.broadcast_to(
            key_lengths.astype(jnp.int32)[:, None], rows_of_lengths
        )
    outputs = {
        "out": jax.ShapeDtypeStruct(q.shape, v.dtype),
        "sums": jax.ShapeDtypeStruct(
            (batch, heads, problem.q_tiles * tile.block_rows), jnp.float32
        ),
    }
    if rises and lists is not None:
        # The table of a thread block begins as zeros, which come with the other tables.
        inputs["rises"] = jnp.zeros((lists.width,), jnp.float32)
        outputs["found"] = jax.ShapeDtypeStruct(
            (batch, heads, problem.q_tiles, lists.width), jnp.float32
        )
    scratch = scratch_buffers(inputs, tile)

    def body(*refs):
        source = dict(zip((*inputs, *outputs), refs, strict=False))
        memory = dict(zip(scratch, refs[len(source) :], strict=True))
        head, q_tile = problem.place(lax.axis_index("item"))
        entry, warpgroup = lax.axis_index("batch"), lax.axis_index("wg")
        work = Work(problem, source, memory, entry, head, q_tile, warpgroup)
        computing, loading = _REGISTERS[tile.warpgroups]

        @pl.when(warpgroup == tile.warpgroups)
        def _():
            plgpu.set_max_registers(loading, action="decrease")
            load(work)

        @pl.when(warpgroup < tile.warpgroups)
        def _():
            plgpu.set_max_registers(computing, action="increase")
            _attend_rows(work)

    kernel = plgpu.kernel(
        body,
        out_type=tuple(outputs.values()),
        scratch_types=tuple(scratch.values()),
        grid=(batch, heads * problem.q_tiles),
        grid_names=("batch", "item"),
        num_threads=tile.warpgroups + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        kernel_name="attention",
        interpret=plgpu.InterpretGPUParams() if interpret else None,
    )
    return kernel(*inputs.values())


def _attend_rows(work: Work) -> None:
    """Loads a warpgroup's queries, attends, stores the output and the row sums."""
    problem, tile = work.problem, work.problem.tile
    source, memory, warpgroup = work.source, work.memory, work.warpgroup
    first_row = work.q_tile * tile.block_rows + warpgroup * ROWS
    window = pl.ds(first_row, ROWS)
    q_smem = memory["q"].at[warpgroup]
    q_full = memory["q_full"].at[warpgroup]
    plgpu.copy_gmem_to_smem(
        source["q"].at[work.entry, window, work.head], q_smem, q_full
    )
    if problem.quantized:
        plgpu.copy_gmem_to_smem(
            source["q_scales"].at[work.entry, work.head, window],
            memory["q_scales"].at[warpgroup],
            q_full,
        )
    if tile.turns:
        # The last warpgroup hands the first turn to the first.
        @pl.when(warpgroup == tile.warpgroups - 1)
        def _():
            plgpu.barrier_arrive(memory["turn"].at[0])

    plgpu.barrier_wait(q_full)
    work.wait_for_tables()
    row_scales = None
    if problem.quantized:
        row_scales = plgpu.load(
            memory["q_scales"].at[warpgroup],
            layout=plgpu.Layout.WGMMA.reduce(1),
            optimized=False,
        )
    head_dim = problem.shape[3]

    def all_blocks(out_ref):
        total = Attending(work, row_scales, out_ref).run()
        return out_ref[...], total

    accumulator = plgpu.ACC((ROWS, head_dim), jnp.float32)
    out, total = pl.run_scoped(all_blocks, accumulator)
    store = memory["out"].at[warpgroup] if problem.quantized else q_smem
    store[...] = (out * rows(1.0 / total, head_dim)).astype(problem.dtype)
    memory["sums"].at[warpgroup][...] = total
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(store, source["out"].at[work.entry, window, work.head])
    plgpu.copy_smem_to_gmem(
        memory["sums"].at[warpgroup], source["sums"].at[work.entry, work.head, window]
    )
    if "rises" in memory:
        # The last word is that of all warpgroups.
        plgpu.barrier_arrive(memory["rises_done"])

        @pl.when(warpgroup == 0)
        def _():
            plgpu.barrier_wait(memory["rises_done"])
            plgpu.commit_smem()
            copy_out(
                memory["rises"], source["found"].at[work.entry, work.head, work.q_tile]
            )

    # Shared memory must last until it is read; the writes end by themselves.
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
