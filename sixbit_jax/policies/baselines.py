"""Assignments that look at nothing: what a method has to beat at equal bits."""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sixbit_jax.policies._common import no_update
from sixbit_jax.policies.base import BlockGrid, Plan, Policy, PolicyState, StepIndex
from sixbit_jax.policies.parameters import Number, Whole, declared
from sixbit_jax.routes import Route


def alternate(by: Literal["step", "block"] = "step") -> Policy:
    """INT8 at even steps (or in even blocks), NVFP4 at odd ones: 6 bits on average.

    Raises:
      ValueError: `by` is neither "step" nor "block".
    """
    plans = {"step": _alternate_steps, "block": _alternate_blocks}
    if by not in plans:
        raise ValueError(f"alternate: by must be 'step' or 'block', found {by!r}")
    return Policy(
        init=_no_state,
        plan=plans[by],
        update=no_update,
        routes=(Route.NVFP4, Route.INT8),
    )


def _no_state(grid: BlockGrid) -> PolicyState:
    del grid
    return ()


def _alternate_steps(state: PolicyState, step: StepIndex, plan: Plan) -> Plan:
    del state
    route = jnp.where(step.index % 2 == 0, Route.INT8, Route.NVFP4)
    return plan._replace(route=jnp.full_like(plan.route, route))


def _alternate_blocks(state: PolicyState, step: StepIndex, plan: Plan) -> Plan:
    del state, step
    number = jnp.arange(plan.route.shape[0])[:, None]
    route = jnp.where(number % 2 == 0, Route.INT8, Route.NVFP4)
    return plan._replace(route=jnp.broadcast_to(route, plan.route.shape))


class RandomState(NamedTuple):
    """Attributes: the seed, the branch, and the INT8 share of multiply-accumulates."""

    seed: Int[Array, ""]
    branch: Int[Array, ""]
    share: Float[Array, ""]
    macs: Float[Array, "blocks sites"]


@declared
def random_routes(
    seed: Annotated[int, Whole(0)], share: Annotated[float, Number(high=1.0)]
) -> Policy:
    """INT8 at randomly drawn sites, NVFP4 elsewhere; drawn anew at every step.

    Sites are taken in random order while they fit into the share, so that the share
    by multiply-accumulates is met to within one site at every step.

    Args:
      seed: of the draw; branches and steps draw independently.
      share: part of the multiply-accumulates that run in INT8, 0..1. Activation bits
        are 4 + 4 * share.

    Raises:
      ValueError: seed negative, share outside 0..1.
    """
    return Policy(
        init=_RandomInit(seed, share),
        plan=_random_plan,
        update=no_update,
        routes=(Route.NVFP4, Route.INT8),
    )


@dataclass(frozen=True)
class _RandomInit:
    seed: int
    share: float

    def __call__(self, grid: BlockGrid) -> RandomState:
        macs = jnp.asarray(grid.macs / grid.macs.sum(), jnp.float32)
        return RandomState(
            seed=jnp.int32(self.seed),
            branch=jnp.int32(grid.branch),
            share=jnp.float32(self.share),
            macs=macs,
        )


def _random_plan(state: RandomState, step: StepIndex, plan: Plan) -> Plan:
    key = jax.random.fold_in(jax.random.key(state.seed), state.branch)
    key = jax.random.fold_in(key, step.index)
    weights = state.macs.reshape(-1)
    order = jax.random.permutation(key, weights.size)
    # A site is taken if its middle lies inside the share: no bias either way.
    middle = jnp.cumsum(weights[order]) - weights[order] / 2
    taken = jnp.zeros(weights.shape, bool).at[order].set(middle < state.share)
    route = jnp.where(taken, Route.INT8, Route.NVFP4).astype(jnp.int32)
    return plan._replace(route=route.reshape(plan.route.shape))
