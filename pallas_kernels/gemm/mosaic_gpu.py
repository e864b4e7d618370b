"""A persistent, warp-specialised GEMM for Hopper: A [B, M, K] times W [N, K]^T.

One warpgroup moves operands by TMA through a ring of shared-memory stages that never
drains between output tiles; two warpgroups multiply. What the epilogue needs (scales,
bias, gates, the residual tile) is fetched while the products run.
"""

from __future__ import annotations

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.gemm import buffers
from pallas_kernels.gemm.chunk import before_residual
from pallas_kernels.gemm.config import COMPUTE_WARPGROUPS, STORE_ROWS, Epilogue, Tile

_MEMORY_WARPGROUP = COMPUTE_WARPGROUPS
_MEMORY_REGISTERS = 40
_COMPUTE_REGISTERS = 232
# Products that are queued before the warpgroup stops to fetch its epilogue operands.
_STEPS_BEFORE_FETCH = 2
# Chunks of the residual that are on their way while one is being used.
_RESIDUAL_AHEAD = 2


def matmul(
    a: jax.Array,
    w: jax.Array,
    *,
    tile: Tile,
    epilogue: Epilogue,
    row_scale: jax.Array | None = None,
    column_scale: jax.Array | None = None,
    scalar_scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    residual: jax.Array | None = None,
    gate: jax.Array | None = None,
    text_gate: jax.Array | None = None,
    out_dtype=jnp.bfloat16,
    multiprocessors: int = 132,
    interpret: bool = False,
) -> jax.Array:
    """Multiplies and applies the epilogue.

    Args:
        a: `[B, M, K]`, int8, bfloat16, float16 or float8; any M (in the interpreter a
            multiple of 8).
        w: `[N, K]`, the dtype of `a`; N a multiple of 16 (8 for float32 results).
        tile: how the work is cut.
        epilogue: which of the operands below are used.
        row_scale: `[B * M']` float32, M' being M or a little more, multiple of 4.
        column_scale: `[N]` float32.
        scalar_scale: `[1]` float32.
        bias: `[N]`, float32, bfloat16 or float16.
        residual: `[B, M, N]` in `out_dtype`.
        gate: `[B, N]` or `[1, N]` (all batch entries), dtype as `bias`.
        text_gate: like `gate`, for the first `epilogue.text_rows` rows.
        out_dtype: bfloat16, float16 or float32.
        multiprocessors: blocks of the persistent grid.
        interpret: run on the CPU by the Pallas interpreter.

    Returns:
        `[B, M, N]` in `out_dtype`.
    """
    batch, m, k = a.shape
    n = w.shape[0]
    accumulator = jnp.int32 if a.dtype == jnp.int8 else jnp.float32
    columns_per_store = tile.store_columns(n, jnp.dtype(out_dtype).itemsize)
    chunks = tile.chunks(columns_per_store)
    slots = tile.slots(chunks, epilogue)
    k_steps = pl.cdiv(k, tile.depth)
    row_tiles = pl.cdiv(m, tile.cluster_rows)
    column_tiles = pl.cdiv(n, tile.cluster_columns)
    alternate = tile.split == "alternate"
    share_w = "cluster" if tile.cluster == "rows" else None
    share_a = "cluster" if tile.cluster == "columns" else None
    gate_batch = 1 if gate is None else gate.shape[0]

    vectors: dict[str, jax.Array] = {
        name: value
        for name, value in (
            ("row_scale", row_scale),
            ("column_scale", column_scale),
            ("bias", bias),
            ("gate", gate),
            ("text_gate", text_gate),
        )
        if value is not None
    }
    inputs = {"a": a, "w": w, **vectors}
    if scalar_scale is not None:
        inputs["scalar_scale"] = scalar_scale
    if residual is not None:
        inputs["residual"] = residual
    names = tuple(inputs)

    untiled = m % buffers.TILED_ROWS != 0

    def body(*refs):
        gmem = dict(zip(names, refs, strict=False))
        out_gmem = refs[len(names)]
        scratch = dict(zip(scratch_types, refs[len(names) + 1 :], strict=True))
        w_smem = scratch["w"]
        a_smem, a_landing = scratch["a"] if untiled else (scratch["a"],) * 2
        store, store_out = scratch["store"] if untiled else (scratch["store"],) * 2
        full, empty = scratch["full"], scratch["empty"]
        warpgroup = lax.axis_index("wg")
        block = lax.axis_index("cluster")

        tiles = batch * row_tiles * column_tiles
        blocks = multiprocessors // tile.cluster_size
        grid_index = lax.axis_index("grid")
        local_tiles = lax.div(tiles + blocks - 1 - grid_index, jnp.int32(blocks))

        def for_each_tile(visit):
            """Calls `visit(local index, batch, row, column)` for this block's tiles."""

            @pl.loop(0, local_tiles)
            def _loop(local):
                linear = local * blocks + grid_index
                entry = jnp.int32(0)
                if batch > 1:
                    per_entry = jnp.int32(row_tiles * column_tiles)
                    entry = lax.div(linear, per_entry)
                    linear = lax.rem(linear, per_entry)
                row, column = plgpu.planar_snake(
                    linear,
                    (row_tiles, column_tiles),
                    0 if tile.minor == "rows" else 1,
                    tile.band,
                )
                if tile.cluster == "rows":
                    row = row * 2 + block
                if tile.cluster == "columns":
                    column = column * 2 + block
                visit(local, entry, row * tile.block_rows, column * tile.block_columns)

        def full_base(local):
            """Alternating warpgroups skip stages, so each has its own barriers."""
            return lax.rem(local, jnp.int32(2)) * tile.stages if alternate else 0

        @pl.when(warpgroup == _MEMORY_WARPGROUP)
        def _move():
            plgpu.set_max_registers(_MEMORY_REGISTERS, action="decrease")

            def visit(local, entry, row, column):
                @pl.loop(0, k_steps)
                def _step(k_step):
                    step = local * k_steps + k_step
                    slot = lax.rem(step, jnp.int32(tile.stages))

                    @pl.when(step >= tile.stages)
                    def _():
                        plgpu.barrier_wait(empty.at[slot])

                    arrived = full.at[slot + full_base(local)]
                    depth = pl.ds(k_step * tile.depth, tile.depth)
                    plgpu.copy_gmem_to_smem(
                        gmem["a"].at[entry, pl.ds(row, tile.block_rows), depth],
                        a_landing.at[slot],
                        arrived,
                        collective_axes=share_a,
                    )
                    plgpu.copy_gmem_to_smem(
                        gmem["w"].at[pl.ds(column, tile.block_columns), depth],
                        w_smem.at[slot],
                        arrived,
                        collective_axes=share_w,
                    )

            for_each_tile(visit)
            # Leave only when every stage was released: with clusters the peer's
            # arrivals must find this block still there.
            steps = local_tiles * k_steps

            @pl.loop(lax.max(steps - tile.stages, jnp.int32(0)), steps)
            def _drain(step):
                plgpu.barrier_wait(empty.at[lax.rem(step, jnp.int32(tile.stages))])

        @pl.when(warpgroup != _MEMORY_WARPGROUP)
        def _multiply():
            plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
            rows_in_block = (
                pl.ds(warpgroup * tile.rows, tile.rows)
                if tile.split == "rows"
                else pl.ds(0, tile.rows)
            )
            columns_in_block = (
                pl.ds(warpgroup * tile.columns, tile.columns)
                if tile.split == "columns"
                else pl.ds(0, tile.columns)
            )

            def release(step):
                plgpu.barrier_arrive(empty.at[lax.rem(step, jnp.int32(tile.stages))])

            def visit(local, entry, row, column):
                first = local * k_steps
                row = row + (warpgroup * tile.rows if tile.split == "rows" else 0)
                column = column + (
                    warpgroup * tile.columns if tile.split == "columns" else 0
                )

                def products(begin, end, acc):
                    @pl.loop(begin, end)
                    def _step(k_step):
                        step = first + k_step
                        slot = lax.rem(step, jnp.int32(tile.stages))
                        plgpu.barrier_wait(full.at[slot + full_base(local)])
                        plgpu.wgmma(
                            acc,
                            a_smem.at[slot, rows_in_block],
                            w_smem.at[slot, columns_in_block].T,
                        )
                        plgpu.wgmma_wait(tile.in_flight)
                        if tile.in_flight == 0:
                            release(step)
                        elif begin > 0:
                            release(step - 1)
                        else:
                            pl.when(k_step > 0)(lambda: release(step - 1))

                def tile_body(acc):
                    early = min(_STEPS_BEFORE_FETCH, k_steps)
                    products(0, early, acc)
                    fetch(entry, row, column)
                    if early < k_steps:
                        products(early, k_steps, acc)
                    value = acc[...]
                    if tile.in_flight:
                        release(first + k_steps - 1)
                    finish(value, entry, row, column)

                if alternate:

                    @pl.when(lax.rem(local, jnp.int32(2)) == warpgroup)
                    def _():
                        pl.run_scoped(
                            tile_body,
                            plgpu.ACC((tile.rows, tile.columns), accumulator),
                        )
                else:
                    pl.run_scoped(
                        tile_body, plgpu.ACC((tile.rows, tile.columns), accumulator)
                    )

            def fetch(entry, row, column):
                """Starts the copies that the epilogue of this tile will read."""
                for name in vectors:
                    source = gmem[name]
                    if name == "row_scale":
                        first = entry * (source.shape[0] // batch) + row
                        source = source.at[pl.ds(first, tile.rows)]
                    else:
                        window = pl.ds(column, tile.columns)
                        if name in ("gate", "text_gate"):
                            index = entry if gate_batch > 1 else 0
                            source = source.at[index, window]
                        else:
                            source = source.at[window]
                    plgpu.copy_gmem_to_smem(
                        source,
                        scratch[name].at[warpgroup],
                        scratch["ready"].at[warpgroup],
                    )
                if epilogue.residual:
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                    for chunk in range(min(_RESIDUAL_AHEAD, chunks)):
                        fetch_residual(chunk, entry, row, column)

            def place(chunk, entry, row, column):
                """Where a chunk lies in the output and in the residual."""
                r, c = divmod(chunk, tile.columns // columns_per_store)
                return (
                    entry,
                    pl.ds(row + r * STORE_ROWS, STORE_ROWS),
                    pl.ds(column + c * columns_per_store, columns_per_store),
                )

            def fetch_residual(chunk, entry, row, column):
                """Loads a chunk of the residual into the slot it is stored from."""
                slot = chunk % slots
                plgpu.copy_gmem_to_smem(
                    gmem["residual"].at[place(chunk, entry, row, column)],
                    store_out.at[warpgroup, slot],
                    scratch["residual_ready"].at[warpgroup * slots + slot],
                )

            def finish(value, entry, row, column):
                """Scales, biases, activates, adds the residual and stores a tile."""
                if "ready" in scratch:
                    plgpu.barrier_wait(scratch["ready"].at[warpgroup])
                shape = (STORE_ROWS, columns_per_store)
                for r in range(tile.rows // STORE_ROWS):
                    row_window = pl.ds(r * STORE_ROWS, STORE_ROWS)
                    for c in range(tile.columns // columns_per_store):
                        chunk = r * (tile.columns // columns_per_store) + c
                        slot = chunk % slots
                        column_window = pl.ds(c * columns_per_store, columns_per_store)
                        sums = lax.slice(
                            value,
                            (r * STORE_ROWS, c * columns_per_store),
                            ((r + 1) * STORE_ROWS, (c + 1) * columns_per_store),
                        )

                        def vector(
                            name, dimension, windows=(row_window, column_window)
                        ):
                            loaded = plgpu.load(
                                scratch[name].at[warpgroup, windows[dimension]],
                                layout=plgpu.Layout.WGMMA.reduce(1 - dimension),
                                optimized=False,
                            )
                            return lax.broadcast_in_dim(
                                loaded.astype(jnp.float32), shape, [dimension]
                            )

                        y = before_residual(
                            sums,
                            epilogue,
                            vector,
                            lambda: gmem["scalar_scale"][0],
                            epilogue.text_rows - row - r * STORE_ROWS,
                        )
                        if epilogue.residual:
                            plgpu.barrier_wait(
                                scratch["residual_ready"].at[warpgroup * slots + slot]
                            )
                            y = y + store[warpgroup, slot].astype(jnp.float32)
                        else:
                            plgpu.wait_smem_to_gmem(slots - 1, wait_read_only=True)
                        store[warpgroup, slot] = y.astype(out_dtype)
                        plgpu.commit_smem()
                        plgpu.copy_smem_to_gmem(
                            store_out.at[warpgroup, slot],
                            out_gmem.at[place(chunk, entry, row, column)],
                        )
                        ahead = chunk + _RESIDUAL_AHEAD
                        if epilogue.residual and ahead < chunks:
                            # Its slot was last stored from one chunk ago at the latest.
                            plgpu.wait_smem_to_gmem(
                                slots - _RESIDUAL_AHEAD, wait_read_only=True
                            )
                            fetch_residual(ahead, entry, row, column)

            for_each_tile(visit)
            plgpu.wait_smem_to_gmem(0, wait_read_only=False)

    scratch_types = buffers.scratch_types(
        tile,
        epilogue,
        vectors,
        operand_dtype=a.dtype,
        out_dtype=out_dtype,
        store_columns=columns_per_store,
        untiled=untiled,
    )
    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((batch, m, n), out_dtype),
        scratch_types=tuple(scratch_types.values()),
        grid=(multiprocessors // tile.cluster_size,),
        grid_names=("grid",),
        cluster=(tile.cluster_size,),
        cluster_names=("cluster",),
        num_threads=COMPUTE_WARPGROUPS + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=plgpu.InterpretGPUParams() if interpret else None,
        kernel_name="gemm",
    )
    return kernel(*inputs.values())
