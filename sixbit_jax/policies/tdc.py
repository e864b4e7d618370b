"""TDC, the Temporal Delta Cache: a block whose delta is stable is not computed.

6Bit-Diffusion (arXiv 2603.18742). A skipped block returns X + cached delta.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sixbit_jax.measured import NO_CHANGE
from sixbit_jax.policies._common import (
    block_mask,
    is_last,
    with_skips,
)
from sixbit_jax.policies.base import BlockGrid, Plan, Policy, Stats, StepIndex
from sixbit_jax.policies.parameters import (
    Blocks,
    Flag,
    Number,
    OrNone,
    Whole,
    declared,
)


class TdcState(NamedTuple):
    """Numbers of the rule, and what happened to each block so far.

    Attributes:
      together: row-stochastic matrix that averages e over the blocks that decide
        together.
      residual: e is relative to the residual stream (times gamma).
      shared: e is the mean over the guidance branches.
      change: e, relative change between the last two computed deltas (`NO_CHANGE`:
        none).
      accumulated: E_acc, sum of e over the skips since the last compute.
      in_a_row: skips since the last compute.
      computed: steps in which the block was computed.
    """

    tau: Float[Array, ""]
    max_skips: Int[Array, ""]
    warmup: Int[Array, ""]
    may_skip: Bool[Array, "blocks"]
    together: Float[Array, "blocks blocks"]
    residual: Bool[Array, ""]
    shared: Bool[Array, ""]
    change: Float[Array, "blocks"]
    accumulated: Float[Array, "blocks"]
    in_a_row: Int[Array, "blocks"]
    computed: Int[Array, "blocks"]


@declared
def tdc(
    tau: Annotated[float, Number(finite=True)],
    *,
    max_skips: Annotated[int, Whole(1)] = 2,
    warmup: Annotated[int, Whole(2)] = 2,
    blocks: Annotated[Iterable[int] | None, OrNone(Blocks())] = None,
    together: Annotated[int | None, OrNone(Whole(1))] = 1,
    residual: Annotated[bool, Flag()] = False,
    shared: Annotated[bool, Flag()] = False,
) -> Policy:
    """Skips a block while the expected error of its cached delta stays below tau.

        e     = sum|delta_{t-1} - delta_{t-2}| / sum|delta_{t-2}|, computed deltas only
        skip  iff E_acc + e < tau and fewer than max_skips skips in a row
        E_acc = E_acc + e at a skip, 0 after a compute

    Never before `warmup` computed steps, never in the last step, never from a
    change that was not measured.
    Every block decides for itself, in each guidance branch, unless `together` and
    `shared` say otherwise.

    Args:
      tau: limit of the accumulated relative change; 0 skips nothing.
      max_skips: N_max, longest run of skips, at least 1.
      warmup: computed steps before the first skip, at least 2 (e needs two deltas).
      blocks: the blocks that may be skipped; None for all. The cache holds no others.
      together: so many neighbouring blocks decide as one, by their mean e; None for
        all blocks. The paper's rule is 1. Larger groups skip coherently: a skipped
        group is the group of an earlier step, not a mixture of steps. They share one
        delta, so that the cache is smaller by the size of the group.
      residual: use e * gamma, the change relative to the residual stream, so that
        blocks that add little skip sooner than blocks that add much.
      shared: both guidance branches decide as one, by their mean e. The paper's rule
        is one decision per branch; but the guidance scale multiplies the difference
        of the branches, and errors that both have in the same step mostly leave it.

    Raises:
      ValueError: together below 1, tau negative or not finite, max_skips below 1,
        warmup below 2, negative or repeated blocks; in `init`: a block that the model
        does not have.

    >>> from sixbit_jax import tdc
    >>> tdc(0.2).skips  # any block
    True
    >>> tdc(0.2, blocks=[5, 3]).skips
    (3, 5)
    """
    listed = None if blocks is None else tuple(int(b) for b in blocks)
    if listed is not None and (
        len(set(listed)) < len(listed) or min(listed, default=0) < 0
    ):
        raise ValueError(
            f"tdc: blocks must be distinct and not negative, found {listed}"
        )
    init = _Init(
        tau=tau,
        max_skips=max_skips,
        warmup=warmup,
        blocks=None if listed is None else tuple(sorted(listed)),
        together=together,
        residual=residual,
        shared=shared,
    )
    return Policy(
        init=init,
        plan=_plan,
        update=_update,
        skips=True if init.blocks is None else init.blocks,
        group=init.together if init.blocks is None else 1,
    )


@dataclass(frozen=True)
class _Init:
    tau: float
    max_skips: int
    warmup: int
    blocks: tuple[int, ...] | None
    together: int | None
    residual: bool
    shared: bool

    def __call__(self, grid: BlockGrid) -> TdcState:
        length = (grid.num_blocks,)
        group = np.arange(grid.num_blocks) // (self.together or grid.num_blocks)
        same = group[:, None] == group[None, :]
        return TdcState(
            tau=jnp.float32(self.tau),
            max_skips=jnp.int32(self.max_skips),
            warmup=jnp.int32(self.warmup),
            may_skip=jnp.asarray(block_mask("tdc", self.blocks, grid.num_blocks)),
            together=jnp.asarray(same / same.sum(1, keepdims=True), jnp.float32),
            residual=jnp.asarray(self.residual),
            shared=jnp.asarray(self.shared),
            change=jnp.full(length, NO_CHANGE, jnp.float32),
            accumulated=jnp.zeros(length, jnp.float32),
            in_a_row=jnp.zeros(length, jnp.int32),
            computed=jnp.zeros(length, jnp.int32),
        )


def _plan(state: TdcState, step: StepIndex, plan: Plan) -> Plan:
    # `NO_CHANGE` exceeds every tau, and a comparison with NaN is false.
    stable = state.accumulated + state.change < state.tau
    allowed = state.may_skip & (state.in_a_row < state.max_skips)
    started = (state.computed >= state.warmup) & ~is_last(step)
    return with_skips(plan, stable & allowed & started, state.in_a_row)


def _update(state: TdcState, plan: Plan, stats: Stats) -> TdcState:
    del plan
    done = stats.computed
    measured = stats.delta_change
    if stats.shared_change is not None:
        measured = jnp.where(state.shared, stats.shared_change, measured)
    # A mean over branches of which one has nothing to compare with is as large.
    comparable = measured < 1e-3 * NO_CHANGE
    relative = jnp.where(comparable, measured * stats.gamma, NO_CHANGE)
    measured = jnp.where(state.residual, relative, measured)
    # A block without a change to compare with decides for its group, and no other.
    mixed = jnp.where(state.together > 0, state.together * measured, 0.0).sum(-1)
    return state._replace(
        change=jnp.where(done, mixed, state.change),
        accumulated=jnp.where(done, 0.0, state.accumulated + state.change),
        in_a_row=jnp.where(done, 0, state.in_a_row + 1),
        computed=state.computed + done.astype(jnp.int32),
    )
