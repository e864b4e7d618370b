"""delta-GBS, delta-guided bit switching (DVD-Quant, arXiv 2505.18663)."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sixbit_jax.policies._common import checked_number
from sixbit_jax.policies.base import BlockGrid, Plan, Policy, Stats, StepIndex
from sixbit_jax.routes import Route


class DeltaGbsState(NamedTuple):
    """The threshold, and the output change since the last reset (infinite: unknown)."""

    delta: Float[Array, ""]
    accumulated: Float[Array, ""]


def delta_gbs(delta: float = 0.09) -> Policy:
    """4-bit activations while the model's output barely changes, 8-bit otherwise.

        L1_t = sum|F_t - F_{t-1}| / sum|F_{t-1}|     F: guided output of the model
        step t runs in NVFP4 iff the sum of L1 since the last reset < delta,
        else in INT8, and the sum is reset

    L1 of a step is known after it, so that step t decides by L1 up to t-1. [ours] The
    first step has nothing to compare with: it runs in INT8, and so does the second,
    as a change that was not measured counts as too large. [ours] A step that a cache
    skipped altogether adds its change, but resets nothing, since nothing ran in INT8.

    It routes the whole model, all guidance branches alike. In a chain it goes where
    `dmpq` would: `chain(delta_gbs(), tdc(tau), pdr())`.

    Args:
      delta: limit of the accumulated change; 0: always INT8, infinity: NVFP4 after the
        first two steps.

    Raises:
      ValueError: delta is negative or NaN.
    """
    init = _Init(checked_number("delta_gbs", "delta", delta))
    return Policy(
        init=init, plan=_plan, update=_update, routes=(Route.NVFP4, Route.INT8)
    )


@dataclass(frozen=True)
class _Init:
    delta: float

    def __call__(self, grid: BlockGrid) -> DeltaGbsState:
        del grid
        return DeltaGbsState(jnp.float32(self.delta), jnp.float32(jnp.inf))


def _calm(state: DeltaGbsState) -> Bool[Array, ""]:
    return state.accumulated < state.delta


def _plan(state: DeltaGbsState, step: StepIndex, plan: Plan) -> Plan:
    del step
    route = jnp.where(_calm(state), Route.NVFP4, Route.INT8)
    return plan._replace(route=jnp.full_like(plan.route, route))


def _update(state: DeltaGbsState, plan: Plan, stats: Stats) -> DeltaGbsState:
    del plan
    change = jnp.asarray(stats.output_change, jnp.float32)
    change = jnp.where(jnp.isfinite(change), change, jnp.inf)
    reset = ~_calm(state) & stats.computed.any()
    return state._replace(accumulated=jnp.where(reset, 0.0, state.accumulated) + change)
