"""8-bit attention for stable blocks, 16-bit attention for volatile ones."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sixbit_jax.measured import NO_LIMIT, NOT_MEASURED
from sixbit_jax.policies._common import block_mask
from sixbit_jax.policies.base import BlockGrid, Plan, Policy, Stats, StepIndex
from sixbit_jax.policies.parameters import Blocks, Number, OrNone, declared


class Int8AttentionState(NamedTuple):
    """Attributes: the limit, the blocks it is for, and their last gamma (none: -1)."""

    max_gamma: Float[Array, ""]
    blocks: Bool[Array, "blocks"]
    gamma: Float[Array, "blocks"]


@declared
def int8_attention(
    max_gamma: Annotated[float, Number()] = math.inf,
    *,
    blocks: Annotated[Iterable[int] | None, OrNone(Blocks())] = None,
) -> Policy:
    """Quantizes the scores of blocks that changed little when they last ran.

        INT8 scores  iff  gamma <= max_gamma,  gamma = sum|Y - X| / sum|X|

    gamma is 6Bit-Diffusion's measure of how volatile a block is (arXiv 2603.18742),
    from its last computed step; before the first, scores have 16 bits. The compiled
    program holds both kinds of attention and one conditional per block.

    Leave the sampler's `attention` at None, for its other values overrule a policy.
    Where 8-bit attention costs no quality, `attention="int8"` for all blocks is faster.

    Args:
      max_gamma: limit, not negative; infinite: in every step, whatever gamma is.
      blocks: the blocks it is for; None for all.

    Raises:
      ValueError: max_gamma negative or NaN; in `init`: a block that the model does not
        have.
    """
    listed = None if blocks is None else tuple(sorted({int(b) for b in blocks}))
    return Policy(
        init=_Init(max_gamma, listed),
        plan=_plan,
        update=_update,
        attention=True,
    )


@dataclass(frozen=True)
class _Init:
    max_gamma: float
    blocks: tuple[int, ...] | None

    def __call__(self, grid: BlockGrid) -> Int8AttentionState:
        return Int8AttentionState(
            max_gamma=jnp.float32(min(self.max_gamma, NO_LIMIT)),
            blocks=jnp.asarray(
                block_mask("int8_attention", self.blocks, grid.num_blocks)
            ),
            gamma=jnp.full((grid.num_blocks,), NOT_MEASURED, jnp.float32),
        )


def _plan(state: Int8AttentionState, step: StepIndex, plan: Plan) -> Plan:
    del step
    # A block that never ran is not known to be stable.
    calm = (state.gamma >= 0) & (state.gamma <= state.max_gamma)
    stable = (state.max_gamma >= NO_LIMIT) | calm
    return plan._replace(int8_scores=plan.int8_scores | (state.blocks & stable))


def _update(state: Int8AttentionState, plan: Plan, stats: Stats) -> Int8AttentionState:
    del plan
    return state._replace(gamma=jnp.where(stats.computed, stats.gamma, state.gamma))
