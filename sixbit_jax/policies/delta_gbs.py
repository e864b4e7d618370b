"""delta-GBS, delta-guided bit switching (DVD-Quant, arXiv 2505.18663)."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sixbit_jax.measured import NO_CHANGE
from sixbit_jax.policies.base import BlockGrid, Plan, Policy, Stats, StepIndex
from sixbit_jax.policies.parameters import Number, RouteName, declared
from sixbit_jax.routes import Route


class DeltaGbsState(NamedTuple):
    """The rule's numbers, and the change since the last reset (unknown: large)."""

    delta: Float[Array, ""]
    low: Int[Array, ""]
    high: Int[Array, ""]
    accumulated: Float[Array, ""]


@declared
def delta_gbs(
    delta: Annotated[float, Number()] = 0.09,
    *,
    low: Annotated[Route, RouteName()] = Route.NVFP4,
    high: Annotated[Route, RouteName()] = Route.INT8,
) -> Policy:
    """4-bit activations while the model's output barely changes, 8-bit otherwise.

        L1_t = sum|F_t - F_{t-1}| / sum|F_{t-1}|     F: guided output of the model
        step t runs in `low` iff the sum of L1 since the last reset < delta,
        else in `high`, and the sum is reset

    L1 of a step is known after it, so that step t decides by L1 up to t-1. Our choice:
    the first step has nothing to compare with: it runs in `high`, and so does the
    second, as a change that was not measured counts as too large. Our choice too: a
    step that a cache skipped altogether adds its change, but resets nothing, since
    nothing ran in `high`.

    It routes the whole model, all guidance branches alike. In a chain it goes where
    `dmpq` would: `chain(delta_gbs(), tdc(tau), pdr())`.

    Args:
      delta: limit of the accumulated change; 0: always `high`, infinity: `low` after
        the first two steps.
      low, high: the two routes; DVD-Quant's own are ARQ4 and ARQ8.

    Raises:
      ValueError: delta is negative or NaN.

    >>> from sixbit_jax import Route, delta_gbs
    >>> policy = delta_gbs(0.09, low=Route.ARQ4, high=Route.ARQ8)
    >>> [route.name for route in policy.routes]
    ['ARQ4', 'ARQ8']
    """
    init = _Init(delta, low, high)
    routes = tuple(sorted({init.low, init.high}))
    return Policy(init=init, plan=_plan, update=_update, routes=routes)


@dataclass(frozen=True)
class _Init:
    delta: float
    low: Route
    high: Route

    def __call__(self, grid: BlockGrid) -> DeltaGbsState:
        del grid
        return DeltaGbsState(
            jnp.float32(min(self.delta, NO_CHANGE)),
            jnp.int32(self.low),
            jnp.int32(self.high),
            jnp.float32(NO_CHANGE),
        )


def _calm(state: DeltaGbsState) -> Bool[Array, ""]:
    return state.accumulated < state.delta


def _plan(state: DeltaGbsState, step: StepIndex, plan: Plan) -> Plan:
    del step
    route = jnp.where(_calm(state), state.low, state.high)
    return plan._replace(route=jnp.full_like(plan.route, route))


def _update(state: DeltaGbsState, plan: Plan, stats: Stats) -> DeltaGbsState:
    del plan
    change = jnp.asarray(stats.output_change, jnp.float32)
    change = jnp.where(jnp.isfinite(change), change, NO_CHANGE)
    reset = ~_calm(state) & stats.computed.any()
    return state._replace(accumulated=jnp.where(reset, 0.0, state.accumulated) + change)
