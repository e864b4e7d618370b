"""The loading warpgroup of the attention kernel."""

from __future__ import annotations

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu

from pallas_kernels.attention.memory import copy_vector
from pallas_kernels.attention.work import Work


def load(work: Work) -> None:
    """Copies tables, then keys and values step by step, as slots become empty."""
    source, memory, problem = work.source, work.memory, work.problem
    places = {
        "k_scales": (work.entry, work.head),
        "blocks": (work.entry, work.head, work.q_tile),
        "proxy_bias": (work.entry, work.head, work.q_tile),
        "proxy_scales": (work.entry, work.head),
        "key_lengths": (work.entry,),
        "rises": (),
    }
    for name, place in places.items():
        if name in memory:
            vector = source[name].at[place] if place else source[name]
            copy_vector(vector, memory[name], memory["tables_full"])
    if problem.counted:
        work.wait_for_tables()
    steps = work.exact_steps()

    @pl.loop(0, steps)
    def _step(step):
        _load_block(work, step, work.block(step))

    groups, rest = problem.proxies
    if groups:

        @pl.loop(0, groups)
        def _proxy(group):
            _load_block(work, steps + group, group, "_proxies")

    if rest:
        _load_block(work, steps + groups, groups, "_proxies", rest)


def _load_block(
    work: Work,
    step: jax.Array | int,
    block: jax.Array | int,
    suffix: str = "",
    count: int | None = None,
) -> None:
    """Keys and values of a block, or of proxies, into the step's slot."""
    memory, tile = work.memory, work.problem.tile
    slot = work.slot(step)
    rows = tile.block_kv if count is None else count
    window = (work.entry, pl.ds(block * tile.block_kv, rows), work.head)
    for name in ("k", "v"):

        @pl.when(step >= tile.stages)
        def _(name=name):
            plgpu.barrier_wait(memory[name + "_empty"].at[slot])

        target = memory[name].at[slot]
        plgpu.copy_gmem_to_smem(
            work.source[name + suffix].at[window],
            target if count is None else target.at[pl.ds(0, count)],
            memory[name + "_full"].at[slot],
        )
