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
# Scales of one TMA copy, whose box is at most 256 long.
SCALES_PER_COPY = 256


def _swizzled(columns: int, dtype) -> tuple:
    """Transforms of a shared-memory buffer whose rows are `columns` long."""
    itemsize = jnp.dtype(dtype).itemsize
    swizzle = min(128, columns * itemsize)
    return (
        plgpu.TilingTransform((8, swizzle // itemsize)),
        plgpu.SwizzleTransform(swizzle),
    )


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_scales: jax.Array | None = None,
    k_scales: jax.Array | None = None,
    *,
    kv_tokens: int,
    scale: float,
    tile: Tile,
    scale_tokens: int = 0,
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
            to a multiple of 256.
        kv_tokens: how many of the keys count; the rest only fill tiles of 8.
        scale: factor of the scores, unused with scales.
        tile: how the work is cut.
        scale_tokens: see `k_scales`.

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
    factor = scale * _LOG2_E

    def body(*refs):
        if quantized:
            q_gmem, k_gmem, v_gmem, q_scale_gmem, k_scale_gmem, *refs = refs
        else:
            q_gmem, k_gmem, v_gmem, *refs = refs
        out_gmem, sum_gmem, *refs = refs
        memory = dict(zip(scratch, refs, strict=True))
        entry, head = lax.axis_index("batch"), lax.axis_index("heads")
        warpgroup = lax.axis_index("wg")

        def slot_of(step):
            return lax.rem(step, jnp.int32(stages))

        @pl.when(warpgroup == warpgroups)
        def _load():
            plgpu.set_max_registers(_REGISTERS[warpgroups][1], action="decrease")
            if quantized:
                for start in range(0, k_scale_gmem.shape[-1], SCALES_PER_COPY):
                    window = pl.ds(start, SCALES_PER_COPY)
                    plgpu.copy_gmem_to_smem(
                        k_scale_gmem.at[entry, head, window],
                        memory["k_scales"].at[window],
                        memory["scales_full"],
                    )

            @pl.loop(0, kv_steps)
            def _step(step):
                slot = slot_of(step)
                window = (entry, pl.ds(step * block_kv, block_kv), head)
                for name, source in (("k", k_gmem), ("v", v_gmem)):

                    @pl.when(step >= stages)
                    def _(name=name):
                        plgpu.barrier_wait(memory[name + "_empty"].at[slot])

                    plgpu.copy_gmem_to_smem(
                        source.at[window],
                        memory[name].at[slot],
                        memory[name + "_full"].at[slot],
                    )

        @pl.when(warpgroup < warpgroups)
        def _attend():
            plgpu.set_max_registers(_REGISTERS[warpgroups][0], action="increase")
            first_row = lax.axis_index("q_tile") * tile.block_rows + warpgroup * ROWS
            q_smem = memory["q"].at[warpgroup]
            q_full = memory["q_full"].at[warpgroup]
            plgpu.copy_gmem_to_smem(
                q_gmem.at[entry, pl.ds(first_row, ROWS), head], q_smem, q_full
            )
            if quantized:
                plgpu.copy_gmem_to_smem(
                    q_scale_gmem.at[entry, head, pl.ds(first_row, ROWS)],
                    memory["q_scales"].at[warpgroup],
                    q_full,
                )
            if tile.turns:
                # The last warpgroup hands the first turn to the first.
                @pl.when(warpgroup == warpgroups - 1)
                def _():
                    plgpu.barrier_arrive(memory["turn"].at[0])

            plgpu.barrier_wait(q_full)
            row_scales = None
            if quantized:
                plgpu.barrier_wait(memory["scales_full"])
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

            def exponents(scores, step, masked):
                """Accumulator of q k^T to exponents of 2."""
                if not quantized:
                    x = scores * factor
                else:
                    parts = []
                    width = math.gcd(block_kv, scale_tokens)
                    for part in range(block_kv // width):
                        key_scale = memory["k_scales"][
                            lax.div(step * block_kv + part * width, scale_tokens)
                        ]
                        ints = columns(scores, part * width, (part + 1) * width)
                        factors = rows(row_scales * key_scale, width)
                        parts.append(ints.astype(jnp.float32) * factors)
                    x = parts[0] if len(parts) == 1 else lax.concatenate(parts, 1)
                if masked:
                    column = plgpu.broadcasted_iota(
                        jnp.int32, (ROWS, block_kv), 1, layout=plgpu.Layout.WGMMA
                    )
                    x = jnp.where(column < kv_tokens - step * block_kv, x, -jnp.inf)
                return x

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
                x = exponents(scores, jnp.int32(0), masked=tail and kv_steps == 1)
                reference = x.max(axis=1)
                if not tile.online:
                    reference = reference + _HEADROOM
                zeros = plgpu.layout_cast(
                    jnp.zeros((ROWS, _SUM_COLUMNS), jnp.float32), plgpu.Layout.WGMMA
                )
                p, totals = probabilities(x, reference, zeros)
                return p.astype(out_dtype), reference, totals

            def later_block(step, slot, carry, out_ref, masked=False):
                """One block: its scores, the values of the block before it, softmax."""
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
                x = exponents(scores, step, masked)
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

            def all_blocks(out_ref):
                carry = first_block()
                if kv_steps - tail_blocks > 1:
                    carry = lax.fori_loop(
                        1,
                        kv_steps - tail_blocks,
                        lambda step, carry: later_block(
                            step, slot_of(step), carry, out_ref
                        ),
                        carry,
                    )
                if tail_blocks:
                    step = jnp.int32(kv_steps - 1)
                    slot = (kv_steps - 1) % stages
                    carry = later_block(step, slot, carry, out_ref, masked=True)
                p, _, totals = carry
                add_values((kv_steps - 1) % stages, p, out_ref)
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

    def operand(shape):
        transforms = _swizzled(head_dim, q.dtype)
        return plgpu.SMEM(shape, q.dtype, transforms=transforms)

    def wide(shape):
        transforms = _swizzled(head_dim, out_dtype)
        return plgpu.SMEM(shape, out_dtype, transforms=transforms)

    scratch = {
        "q": operand((warpgroups, ROWS, head_dim)),
        "k": operand((stages, block_kv, head_dim)),
        "v": wide((stages, block_kv, head_dim)),
        "sums": plgpu.SMEM((warpgroups, ROWS), jnp.float32),
        "q_full": plgpu.Barrier(
            num_arrivals=2 if quantized else 1, num_barriers=warpgroups
        ),
        "k_full": plgpu.Barrier(num_barriers=stages),
        "v_full": plgpu.Barrier(num_barriers=stages),
        "k_empty": plgpu.Barrier(num_arrivals=warpgroups, num_barriers=stages),
        "v_empty": plgpu.Barrier(num_arrivals=warpgroups, num_barriers=stages),
    }
    if tile.turns:
        scratch["turn"] = plgpu.Barrier(num_barriers=warpgroups)
    inputs = [q, k, v]
    if q_scales is not None and k_scales is not None:
        inputs += [q_scales, k_scales]
        copies = k_scales.shape[-1] // SCALES_PER_COPY
        scratch |= {
            "out": wide((warpgroups, ROWS, head_dim)),
            "q_scales": plgpu.SMEM((warpgroups, ROWS), jnp.float32),
            "k_scales": plgpu.SMEM((k_scales.shape[-1],), jnp.float32),
            "scales_full": plgpu.Barrier(num_arrivals=copies),
        }
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
    )
    return kernel(*inputs)
