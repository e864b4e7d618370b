"""Attention on Hopper: one warpgroup loads keys and values, the others attend.

Each compute warpgroup holds 64 rows of q. The softmax is in base 2. By default its
reference point is fixed after the first block of keys (`Tile.online`), so that a block
costs one multiply-add and one exponential per score.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention.lists import BlockLists
from pallas_kernels.attention.memory import copy_vector, scratch_buffers
from pallas_kernels.attention.tiles import ROWS, Tile

_LOG2_E = math.log2(math.e)
# With a fixed reference point, probabilities are smaller by this many powers of two:
# room for later blocks to exceed the first. Float32 and bfloat16 lose no precision.
_HEADROOM = 40.0
# A row sum from which on the fixed reference point counts as overflown.
SUM_LIMIT = 2.0**100
_REGISTERS = {2: (232, 40), 3: (160, 32), 4: (112, 32)}
# Row sums are kept as partial sums of this many columns: one per thread.
_SUM_COLUMNS = 8
# Columns of proxies whose factors and biases are in registers at once.
_PROXY_COLUMNS = 32
# Numbers of a row of key lengths, all the same: what one copy takes at least.
_LENGTH_COPIES = 8
# Least reference point: a block whose keys are all hidden has no largest score.
_LOWEST = -1e30


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
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
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
        interpret: run on the CPU by the Pallas interpreter.

    Returns:
        The output `[batch, q_tokens, heads, head_dim]` in the dtype of `v`, and the sum
        of each row's probabilities, `[batch, heads, padded q_tokens]`. A sum that is
        not below `SUM_LIMIT` means that the row overflowed.
    """
    batch, q_tokens, heads, head_dim = q.shape
    out_dtype = v.dtype
    quantized = q.dtype == jnp.int8
    block_kv, stages, warpgroups = tile.block_kv, tile.stages, tile.warpgroups
    q_tiles = pl.cdiv(q_tokens, tile.block_rows)
    kv_steps = pl.cdiv(kv_tokens, block_kv)
    tail = kv_tokens % block_kv != 0
    tail_blocks = int(tail and kv_steps > 1)
    counted = lists is not None or key_lengths is not None
    # How many of the last blocks that are computed may be masked.
    masked_blocks = int(tail)
    if key_lengths is not None:
        masked_blocks = 1 if lists is None else cut_blocks
    proxy_steps = 0 if lists is None else lists.proxy_steps(block_kv)
    factor = scale * _LOG2_E

    def body(*refs):
        source = dict(zip(inputs, refs, strict=False))
        out_gmem, sum_gmem = refs[len(inputs) : len(inputs) + 2]
        memory = dict(zip(scratch, refs[len(inputs) + 2 :], strict=True))
        entry, head = lax.axis_index("batch"), lax.axis_index("heads")
        q_tile, warpgroup = lax.axis_index("q_tile"), lax.axis_index("wg")

        def slot_of(step):
            return lax.rem(step, jnp.int32(stages))

        def exact_steps():
            """How many blocks are computed; the tables must have arrived."""
            if lists is not None:
                return memory["blocks"][lists.width - 1]
            if key_lengths is None:
                return kv_steps
            return lax.div(key_limit() + (block_kv - 1), jnp.int32(block_kv))

        def key_limit():
            """How many keys count; the tables must have arrived."""
            return kv_tokens if key_lengths is None else memory["key_lengths"][0]

        def block_of(step):
            return step if lists is None else memory["blocks"][step]

        def wait_for_tables():
            if "tables_full" in memory:
                plgpu.barrier_wait(memory["tables_full"])

        @pl.when(warpgroup == warpgroups)
        def _load():
            plgpu.set_max_registers(_REGISTERS[warpgroups][1], action="decrease")
            places = {
                "k_scales": (entry, head),
                "blocks": (entry, head, q_tile),
                "proxy_bias": (entry, head, q_tile),
                "proxy_scales": (entry, head),
                "key_lengths": (entry,),
            }
            for name, place in places.items():
                if name in memory:
                    copy_vector(
                        source[name].at[place], memory[name], memory["tables_full"]
                    )
            if counted:
                wait_for_tables()

            def load(step, block, suffix):
                """Keys and values of a block, or of proxies, into the step's slot."""
                slot = slot_of(step)
                window = (entry, pl.ds(block * block_kv, block_kv), head)
                for name in ("k", "v"):

                    @pl.when(step >= stages)
                    def _(name=name):
                        plgpu.barrier_wait(memory[name + "_empty"].at[slot])

                    plgpu.copy_gmem_to_smem(
                        source[name + suffix].at[window],
                        memory[name].at[slot],
                        memory[name + "_full"].at[slot],
                    )

            steps = exact_steps()

            @pl.loop(0, steps)
            def _step(step):
                load(step, block_of(step), "")

            if proxy_steps:

                @pl.loop(0, proxy_steps)
                def _proxy(group):
                    load(steps + group, group, "_proxies")

        @pl.when(warpgroup < warpgroups)
        def _attend():
            plgpu.set_max_registers(_REGISTERS[warpgroups][0], action="increase")
            first_row = q_tile * tile.block_rows + warpgroup * ROWS
            q_smem = memory["q"].at[warpgroup]
            q_full = memory["q_full"].at[warpgroup]
            plgpu.copy_gmem_to_smem(
                source["q"].at[entry, pl.ds(first_row, ROWS), head], q_smem, q_full
            )
            if quantized:
                plgpu.copy_gmem_to_smem(
                    source["q_scales"].at[entry, head, pl.ds(first_row, ROWS)],
                    memory["q_scales"].at[warpgroup],
                    q_full,
                )
            if tile.turns:
                # The last warpgroup hands the first turn to the first.
                @pl.when(warpgroup == warpgroups - 1)
                def _():
                    plgpu.barrier_arrive(memory["turn"].at[0])

            plgpu.barrier_wait(q_full)
            wait_for_tables()
            row_scales = None
            if quantized:
                row_scales = plgpu.load(
                    memory["q_scales"].at[warpgroup],
                    layout=plgpu.Layout.WGMMA.reduce(1),
                    optimized=False,
                )

            def take_turn():
                if tile.turns:
                    plgpu.barrier_wait(memory["turn"].at[warpgroup])

            def end_turn():
                if tile.turns:
                    following = lax.rem(warpgroup + 1, jnp.int32(warpgroups))
                    plgpu.barrier_arrive(memory["turn"].at[following])

            def rows(vector, width):
                return lax.broadcast_in_dim(vector, (ROWS, width), [0])

            def columns(x, start, stop):
                return lax.slice(x, (0, start), (ROWS, stop))

            def exponents(scores, block, masked):
                """Accumulator of q k^T to exponents of 2."""
                if not quantized:
                    x = scores * factor
                else:
                    parts = []
                    width = math.gcd(block_kv, scale_tokens)
                    for part in range(block_kv // width):
                        key_scale = memory["k_scales"][
                            lax.div(block * block_kv + part * width, scale_tokens)
                        ]
                        ints = columns(scores, part * width, (part + 1) * width)
                        factors = rows(row_scales * key_scale, width)
                        parts.append(ints.astype(jnp.float32) * factors)
                    x = parts[0] if len(parts) == 1 else lax.concatenate(parts, 1)
                if masked:
                    column = plgpu.broadcasted_iota(
                        jnp.int32, (ROWS, block_kv), 1, layout=plgpu.Layout.WGMMA
                    )
                    x = jnp.where(column < key_limit() - block * block_kv, x, -jnp.inf)
                return x

            def proxy_exponents(scores, group):
                """The same for proxies: each has a scale, and a bias for its keys."""
                parts = []
                width = min(block_kv, _PROXY_COLUMNS)
                for start in range(0, block_kv, width):

                    def vector(name, start=start):
                        window = pl.ds(group * block_kv + start, width)
                        loaded = plgpu.load(
                            memory[name].at[window],
                            layout=plgpu.Layout.WGMMA.reduce(0),
                            optimized=False,
                        )
                        return lax.broadcast_in_dim(loaded, (ROWS, width), [1])

                    x = columns(scores, start, start + width).astype(jnp.float32)
                    if quantized:
                        x = x * rows(row_scales, width) * vector("proxy_scales")
                    else:
                        x = x * factor
                    parts.append(x + vector("proxy_bias"))
                return lax.concatenate(parts, 1)

            def probabilities(x, reference, totals):
                p = jnp.exp2(x - rows(reference, block_kv))
                # Sums stay spread over the threads that hold the columns; adding them
                # up across threads waits until the end.
                for start in range(0, block_kv, _SUM_COLUMNS):
                    totals = totals + columns(p, start, start + _SUM_COLUMNS)
                return p, totals

            def add_values(slot, p, out_ref):
                plgpu.barrier_wait(memory["v_full"].at[slot])
                plgpu.wgmma(out_ref, p, memory["v"].at[slot])

            def first_block():
                def product(scores_ref):
                    take_turn()
                    plgpu.wgmma(scores_ref, q_smem, memory["k"].at[0].T)
                    end_turn()
                    return scores_ref[...]

                plgpu.barrier_wait(memory["k_full"].at[0])
                scores = pl.run_scoped(product, plgpu.ACC((ROWS, block_kv), score_type))
                plgpu.barrier_arrive(memory["k_empty"].at[0])
                # A list may be that of the last block alone.
                masked = masked_blocks and (kv_steps == 1 or counted)
                x = exponents(scores, block_of(jnp.int32(0)), masked)
                reference = x.max(axis=1)
                if lists is not None and key_lengths is not None:
                    reference = jnp.maximum(reference, _LOWEST)
                if not tile.online:
                    reference = reference + _HEADROOM
                zeros = plgpu.layout_cast(
                    jnp.zeros((ROWS, _SUM_COLUMNS), jnp.float32), plgpu.Layout.WGMMA
                )
                p, totals = probabilities(x, reference, zeros)
                return p.astype(out_dtype), reference, totals

            def later_block(
                step, slot, carry, out_ref, masked=False, proxies_from=None
            ):
                """One block: its scores, the values of the block before it, softmax.

                `masked` if it may be the last of the keys; from step `proxies_from` on
                blocks are groups of proxies.
                """
                p, reference, totals = carry
                previous = (slot + stages - 1) % stages
                plgpu.barrier_wait(memory["k_full"].at[slot])
                take_turn()

                def products(scores_ref):
                    plgpu.wgmma(scores_ref, q_smem, memory["k"].at[slot].T)
                    add_values(previous, p, out_ref)
                    end_turn()
                    return plgpu.wgmma_accumulator_load(scores_ref, wait_n=1)

                scores = pl.run_scoped(
                    products, plgpu.ACC((ROWS, block_kv), score_type)
                )
                scores = lax.optimization_barrier(scores)
                plgpu.barrier_arrive(memory["k_empty"].at[slot])
                if proxies_from is None:
                    x = exponents(scores, block_of(step), masked)
                else:
                    x = proxy_exponents(scores, step - proxies_from)
                alpha = None
                if tile.online:
                    following = jnp.maximum(reference, x.max(axis=1))
                    alpha = jnp.exp2(reference - following)
                    reference = following
                    totals = totals * rows(alpha, _SUM_COLUMNS)
                p, totals = probabilities(x, reference, totals)
                p, totals = lax.optimization_barrier((p, totals))
                plgpu.wgmma_wait(0)
                plgpu.barrier_arrive(memory["v_empty"].at[previous])
                if alpha is not None:
                    out_ref[...] = out_ref[...] * rows(alpha, head_dim)
                # Registers that a product in flight reads may not be written, and
                # the compiler gives all rounded probabilities the same registers.
                return p.astype(out_dtype), reference, totals

            def counted_blocks(block):
                def blocks(first, stop, carry, **options):
                    body = functools.partial(block, **options)
                    return lax.fori_loop(first, stop, body, carry)

                count = exact_steps()
                # Numbers ascend: only the last of a list can be the last of the keys.
                unmasked = lax.max(count - masked_blocks, jnp.int32(1))
                carry = blocks(jnp.int32(1), unmasked, first_block())
                if masked_blocks:
                    carry = blocks(unmasked, count, carry, masked=True)
                steps = count + proxy_steps
                if proxy_steps:
                    carry = blocks(count, steps, carry, proxies_from=count)
                return carry, slot_of(steps - 1)

            def dense_blocks(block):
                carry = first_block()
                if kv_steps - tail_blocks > 1:
                    carry = lax.fori_loop(1, kv_steps - tail_blocks, block, carry)
                slot = (kv_steps - 1) % stages
                if tail_blocks:
                    step = jnp.int32(kv_steps - 1)
                    carry = block(step, carry, slot=slot, masked=True)
                return carry, slot

            def all_blocks(out_ref):
                def block(step, carry, slot=None, **options):
                    slot = slot_of(step) if slot is None else slot
                    return later_block(step, slot, carry, out_ref, **options)

                walk = counted_blocks if counted else dense_blocks
                (p, _, totals), last = walk(block)
                add_values(last, p, out_ref)
                return out_ref[...], totals.sum(axis=1)

            out, total = pl.run_scoped(
                all_blocks,
                plgpu.ACC((ROWS, head_dim), jnp.float32),
            )
            store = memory["out"].at[warpgroup] if quantized else q_smem
            store[...] = (out * rows(1.0 / total, head_dim)).astype(out_dtype)
            memory["sums"].at[warpgroup][...] = total
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(
                store, out_gmem.at[entry, pl.ds(first_row, ROWS), head]
            )
            plgpu.copy_smem_to_gmem(
                memory["sums"].at[warpgroup],
                sum_gmem.at[entry, head, pl.ds(first_row, ROWS)],
            )
            plgpu.wait_smem_to_gmem(0)

    score_type = jnp.int32 if quantized else jnp.float32

    inputs = {"q": q, "k": k, "v": v}
    if q_scales is not None and k_scales is not None:
        inputs |= {"q_scales": q_scales, "k_scales": k_scales}
    if lists is not None:
        inputs |= lists.arrays()
    if key_lengths is not None:
        rows_of_lengths = (batch, _LENGTH_COPIES)
        inputs["key_lengths"] = jnp.broadcast_to(
            key_lengths.astype(jnp.int32)[:, None], rows_of_lengths
        )
    scratch = scratch_buffers(inputs, tile)
    kernel = plgpu.kernel(
        body,
        out_type=(
            jax.ShapeDtypeStruct(q.shape, out_dtype),
            jax.ShapeDtypeStruct(
                (batch, heads, q_tiles * tile.block_rows), jnp.float32
            ),
        ),
        scratch_types=tuple(scratch.values()),
        grid=(batch, heads, q_tiles),
        grid_names=("batch", "heads", "q_tile"),
        num_threads=warpgroups + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        kernel_name="attention",
        interpret=plgpu.InterpretGPUParams() if interpret else None,
    )
    return kernel(*inputs.values())
