"""Attention to chosen blocks of keys in stable blocks, after the first steps."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sixbit_jax.measured import NO_LIMIT, NOT_MEASURED
from sixbit_jax.policies._common import block_mask, is_last
from sixbit_jax.policies.base import BlockGrid, Plan, Policy, Stats, StepIndex
from sixbit_jax.policies.parameters import (
    Blocks,
    Flag,
    Number,
    OrNone,
    Text,
    Whole,
    declared,
    stored,
)
from sixbit_jax.sparsity import Kind, Order, SparseWay

_MOST_FRAMES = 2**16


class SparseAttentionState(NamedTuple):
    """Numbers of the rule, and the last gamma of each block.

    Attributes:
      tau: of the threshold test.
      blocks: those that may be sparse.
      dense_steps: share of the steps, from the first on, that are dense.
      dense_last: whether the last step is dense.
      max_gamma: limit of gamma.
      gamma: of the last computed step (`NOT_MEASURED`: none).
    """

    tau: Float[Array, ""]
    blocks: Bool[Array, "blocks"]
    dense_steps: Float[Array, ""]
    dense_last: Bool[Array, ""]
    max_gamma: Float[Array, ""]
    gamma: Float[Array, "blocks"]


@declared
def sparse_attention(
    tau: Annotated[float, Number(low=-math.inf)] = 0.8,
    *,
    way: Annotated[Kind, Text()] = "threshold",
    approximate: Annotated[bool, stored(Flag())] = True,
    width: Annotated[float, stored(Number())] = 1.0,
    frames: Annotated[int, stored(Whole(0, _MOST_FRAMES))] = 1,
    order: Annotated[Order, stored(Text())] = "frames",
    blocks: Annotated[tuple[int, int] | None, OrNone(Blocks())] = None,
    dense_steps: Annotated[float, Number(high=1.0)] = 0.2,
    dense_blocks: Annotated[Iterable[int], Blocks()] = (0,),
    dense_last: Annotated[bool, Flag()] = False,
    max_gamma: Annotated[float, Number()] = math.inf,
) -> Policy:
    """Computes self-attention to chosen blocks of keys, where a block is stable.

        sparse  iff  step >= round(dense_steps * steps)  and  gamma <= max_gamma
                     and the block is not among `dense_blocks`

    gamma = sum|Y - X| / sum|X| of the block's last computed step says how volatile it
    is, as in `int8_attention`. Which keys a tile of queries attends to is chosen by the
    threshold test of Sol-Attn (arXiv 2607.24027), of the live queries and keys, or by a
    fixed mask over frames; skipped blocks count by their means unless `approximate` is
    false. The first steps and the first block are dense in Sol-Attn's own settings too.
    `Trace.attention_density` says what share of the keys was computed.

    Policies that differ in the numbers `tau`, `dense_*` and `max_gamma` share a
    compiled program. Text is never skipped: of joint attention, text queries attend to
    everything and everything attends to text. Cross-attention stays dense.

    Args:
      tau: of "threshold": standard deviations above the mean score that a block of keys
        needs to be computed; more is sparser, minus infinity is dense. Of "history":
        exponent of two of the share of a block's weights in those before it, up to
        which it is skipped from then on (LiteAttention's careful setting is -10).
      way: "threshold", "radial", "window" or "history"; see `SparseWay`.
      approximate, width, frames, order, blocks: see `SparseWay`.
      dense_steps: share of the steps that are dense, from the first on.
      dense_blocks: blocks that are always dense.
      dense_last: whether the last step is dense.
      max_gamma: limit, not negative; infinite: whatever gamma is. With a limit, blocks
        that have not run yet are dense.

    Raises:
      ValueError: numbers out of range or an unknown way; in `init`: a block that the
        model does not have.
    """
    return Policy(
        init=_Init(
            tau=tau,
            dense_steps=dense_steps,
            dense_blocks=tuple(sorted({int(block) for block in dense_blocks})),
            dense_last=dense_last,
            max_gamma=max_gamma,
        ),
        plan=_plan,
        update=_update,
        sparse=SparseWay(way, approximate, width, frames, order, blocks),
    )


@dataclass(frozen=True)
class _Init:
    tau: float
    dense_steps: float
    dense_blocks: tuple[int, ...]
    dense_last: bool
    max_gamma: float

    def __call__(self, grid: BlockGrid) -> SparseAttentionState:
        dense = block_mask("sparse_attention", self.dense_blocks, grid.num_blocks)
        return SparseAttentionState(
            # Finite: `jax_debug_infs` must find the user's own.
            tau=jnp.float32(min(max(self.tau, -NO_LIMIT), NO_LIMIT)),
            blocks=jnp.asarray(~dense),
            dense_steps=jnp.float32(self.dense_steps),
            dense_last=jnp.asarray(self.dense_last),
            max_gamma=jnp.float32(min(self.max_gamma, NO_LIMIT)),
            gamma=jnp.full((grid.num_blocks,), NOT_MEASURED, jnp.float32),
        )


def _plan(state: SparseAttentionState, step: StepIndex, plan: Plan) -> Plan:
    first = jnp.floor(state.dense_steps * step.count.astype(jnp.float32) + 0.5)
    late = step.index >= first.astype(jnp.int32)
    # A block that never ran is not known to be stable.
    calm = (state.gamma >= 0) & (state.gamma <= state.max_gamma)
    stable = (state.max_gamma >= NO_LIMIT) | calm
    allowed = late & ~(state.dense_last & is_last(step))
    sparse = state.blocks & stable & allowed
    return plan._replace(
        sparse=plan.sparse | sparse,
        sparse_tau=jnp.where(sparse, state.tau, plan.sparse_tau),
    )


def _update(
    state: SparseAttentionState, plan: Plan, stats: Stats
) -> SparseAttentionState:
    del plan
    return state._replace(gamma=jnp.where(stats.computed, stats.gamma, state.gamma))


__all__ = ["SparseAttentionState", "sparse_attention"]
