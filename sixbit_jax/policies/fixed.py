"""`fixed`: a plan that is known beforehand."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int
from numpy.typing import ArrayLike

from sixbit_jax.policies._common import StaticArray, no_update
from sixbit_jax.policies.base import BlockGrid, Plan, Policy, StepIndex
from sixbit_jax.routes import Route


class FixedState(NamedTuple):
    """Attributes: plans of all steps; a leading axis of 1 stands for every step."""

    skip: Bool[Array, "steps blocks"]
    refresh: Bool[Array, "steps blocks"]
    route: Int[Array, "steps blocks sites"] | None


def fixed(
    skip: ArrayLike | None = None, route: Route | ArrayLike | None = None
) -> Policy:
    """A static plan, the same in every guidance branch.

    Args:
      skip: bool [steps] (whole steps) or [steps, L]; None skips nothing.
      route: one `Route`, or ints [L, S] (every step) or [steps, L, S]; None leaves
        the routes as they are.

    Raises:
      ValueError: wrong shapes, numbers that are no route, a skip in the first step
        (there is no delta yet); in `init`: another number of blocks, sites or steps.

    >>> import numpy as np
    >>> from sixbit_jax import Route, fixed
    >>> every_other_step = np.arange(50) % 2 == 1
    >>> policy = fixed(skip=every_other_step, route=Route.INT8)
    >>> [route.name for route in policy.routes], policy.skips
    (['INT8'], True)
    """
    skips = None if skip is None else StaticArray(skip, bool)
    if skips is not None:
        if skips.values.ndim not in (1, 2) or not len(skips.values):
            raise ValueError(
                f"fixed: skip must be [steps] or [steps, blocks], found shape "
                f"{skips.values.shape}"
            )
        if skips.values[0].any():
            raise ValueError(
                "fixed: the first step cannot be skipped, there is no delta yet"
            )
    routes = None if route is None else _checked_routes(route)
    if skips is not None and routes is not None and routes.values.ndim == 3:
        steps = len(skips.values), len(routes.values)
        if steps[0] != steps[1]:
            raise ValueError(
                f"fixed: skip has {steps[0]} steps and route has {steps[1]}"
            )
    lengths = [len(skips.values)] if skips is not None else []
    if routes is not None and routes.values.ndim == 3:
        lengths.append(len(routes.values))
    used = () if routes is None else sorted(Route(r) for r in np.unique(routes.values))
    return Policy(
        init=_Init(skips, routes, lengths[0] if lengths else None),
        plan=_Plan(lengths[0] if lengths else None),
        update=no_update,
        routes=tuple(used),
        skips=False if skips is None else _skipped_blocks(skips.values),
    )


def _checked_routes(route: Route | ArrayLike) -> StaticArray:
    routes = StaticArray(route)
    known = [r.value for r in Route]
    if routes.values.ndim not in (0, 2, 3) or not np.isin(routes.values, known).all():
        raise ValueError(
            f"fixed: route must be a Route, or routes {known} as [blocks, sites] or "
            f"[steps, blocks, sites], found shape {routes.values.shape} with values "
            f"{np.unique(routes.values)[:8].tolist()}"
        )
    return StaticArray(routes.values, np.int32)


def _skipped_blocks(skip: np.ndarray) -> bool | tuple[int, ...]:
    if skip.ndim == 1:
        return bool(skip.any())
    return tuple(np.flatnonzero(skip.any(0)).tolist()) or False


@dataclass(frozen=True)
class _Init:
    skip: StaticArray | None
    route: StaticArray | None
    num_steps: int | None

    def __call__(self, grid: BlockGrid) -> FixedState:
        if None not in (self.num_steps, grid.num_steps):
            _check_steps(self.num_steps, grid.num_steps)
        blocks, sites = grid.num_blocks, len(grid.sites)
        skip = np.zeros((1, blocks), bool)
        if self.skip is not None:
            skip = self.skip.values
            if skip.ndim == 1:
                skip = np.broadcast_to(skip[:, None], (len(skip), blocks))
            if skip.shape[1] != blocks:
                raise ValueError(
                    f"fixed: skip is for {skip.shape[1]} blocks, the model has {blocks}"
                )
        refresh = np.zeros_like(skip)
        refresh[1:] = skip[:-1] & ~skip[1:]
        route = None
        if self.route is not None:
            route = self.route.values
            if route.ndim and route.shape[-2:] != (blocks, sites):
                raise ValueError(
                    f"fixed: route is for {route.shape[-2:]} blocks and sites, the "
                    f"model has {(blocks, sites)}"
                )
            if route.ndim < 3:
                route = np.broadcast_to(route, (1, blocks, sites))
            route = jnp.asarray(route, jnp.int32)
        return FixedState(jnp.asarray(skip), jnp.asarray(refresh), route)


@dataclass(frozen=True)
class _Plan:
    num_steps: int | None

    def __call__(self, state: FixedState, step: StepIndex, plan: Plan) -> Plan:
        if self.num_steps is not None and not isinstance(step.count, jax.core.Tracer):
            _check_steps(self.num_steps, int(step.count))
        skip = _row(state.skip, step.index)
        skip = plan.skip | skip
        refresh = (plan.refresh | _row(state.refresh, step.index)) & ~skip
        route = plan.route if state.route is None else _row(state.route, step.index)
        return plan._replace(skip=skip, refresh=refresh, route=route)


def _row(table: Array, index: Array) -> Array:
    return table[jnp.minimum(index, len(table) - 1)]


def _check_steps(expected: int | None, found: int | None) -> None:
    if expected != found:
        raise ValueError(f"fixed: the plan has {expected} steps, the sampler {found}")
