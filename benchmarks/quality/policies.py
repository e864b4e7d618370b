"""One policy structure for every row of the quality table.

Compiling the sampler takes longer than running it on the bundled model. So all rows
use one chain of all mechanisms, each behind a switch that is a traced number: the
same compiled program serves uniform routes, DMPQ, step caches and their combinations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from sixbit_jax.policies import (
    BlockGrid,
    ErrorPredictor,
    Plan,
    Policy,
    PolicyState,
    Stats,
    StepIndex,
    chain,
    dmpq,
    fixed,
    pdr,
    random_routes,
    step_cache,
    tdc,
)
from sixbit_jax.routes import Route

ALL_ROUTES = (Route.NVFP4, Route.INT8, Route.BF16)


class SwitchState(NamedTuple):
    """Attributes: whether the policy acts, and its own state."""

    enabled: Bool[Array, ""]
    inner: PolicyState


def switched(policy: Policy, enabled: bool) -> Policy:
    """`policy`, or nothing, by a number in its state: both have one structure."""
    return policy._replace(
        init=_Init(policy.init, bool(enabled)),
        plan=_Plan(policy.plan),
        update=_Update(policy.update),
    )


@dataclass(frozen=True)
class _Init:
    init: Callable[[BlockGrid], PolicyState]
    enabled: bool

    def __call__(self, grid: BlockGrid) -> SwitchState:
        return SwitchState(jnp.asarray(self.enabled), self.init(grid))


@dataclass(frozen=True)
class _Plan:
    plan: Callable[[PolicyState, StepIndex, Plan], Plan]

    def __call__(self, state: SwitchState, step: StepIndex, plan: Plan) -> Plan:
        refined = self.plan(state.inner, step, plan)
        return jax.tree.map(
            lambda new, old: jnp.where(state.enabled, new, old), refined, plan
        )


@dataclass(frozen=True)
class _Update:
    update: Callable[[PolicyState, Plan, Stats], PolicyState]

    def __call__(self, state: SwitchState, plan: Plan, stats: Stats) -> SwitchState:
        return state._replace(inner=self.update(state.inner, plan, stats))


@dataclass(frozen=True)
class Setting:
    """The numbers of one configuration; None switches a mechanism off.

    Attributes:
      route: one `Route`, or routes [L, S] or [steps, L, S], before all else.
      skip: whole steps to skip, bool [steps].
      random_seed: routes drawn anew at every step, half of the work in INT8.
      predictor: the predictor of DMPQ.
      threshold: the threshold of DMPQ, one number or one per site.
      importance, residual, final_int8, hold_gamma: those of DMPQ.
      step_cache: threshold of the whole-step cache.
      tau, max_skips, together, residual_delta, shared: of the Temporal Delta Cache.
      outlier_ratio: rule A of Purified Delta Refresh.
      every_compute: rule A in every computed block.
      refresh_int8: rule B of Purified Delta Refresh.
    """

    route: int | np.ndarray = Route.BF16
    skip: np.ndarray | None = None
    random_seed: int | None = None
    predictor: ErrorPredictor | None = None
    threshold: float | tuple[float, ...] | None = None
    importance: np.ndarray | None = None
    residual: bool = False
    final_int8: int = 0
    hold_gamma: bool = True
    step_cache: float | None = None
    tau: float | None = None
    max_skips: int = 2
    together: int | None = 1
    residual_delta: bool = False
    shared: bool = False
    outlier_ratio: float | None = None
    every_compute: bool = False
    refresh_int8: bool = False


def policy_of(setting: Setting, grid: BlockGrid, *, quantized: bool) -> Policy:
    """The policy of a setting; all settings have one structure.

    Args:
      setting: the numbers.
      grid: the grid of the model; `num_steps` must be known.
      quantized: whether the weights are, so that all routes can run.
    """
    steps, blocks, sites = num_steps(grid), grid.num_blocks, len(grid.sites)
    route = np.broadcast_to(np.asarray(setting.route, int), (steps, blocks, sites))
    skip = np.zeros(steps, bool) if setting.skip is None else setting.skip
    skip = np.broadcast_to(skip[:, None], (steps, blocks))
    zeros = np.zeros((blocks, sites))
    predictor = setting.predictor or ErrorPredictor(grid.sites, zeros, zeros)
    use_dmpq = setting.threshold is not None
    limits = 0.0 if setting.threshold is None else setting.threshold
    threshold = np.broadcast_to(np.asarray(limits, float), (sites,))
    thresholds = dict(zip(grid.sites, threshold.tolist(), strict=True))
    # Rule A's limit is an argument, but "off" is no number: 1e30 never fires.
    limit = 1e30 if setting.outlier_ratio is None else setting.outlier_ratio
    seed = setting.random_seed
    parts = [
        switched(fixed(skip=skip, route=route), True),
        switched(random_routes(seed or 0, 0.5), seed is not None),
        switched(
            dmpq(
                predictor,
                thresholds,
                importance=setting.importance,
                residual=setting.residual,
                final_int8=setting.final_int8,
                hold_gamma=setting.hold_gamma,
            ),
            use_dmpq,
        ),
        switched(step_cache(setting.step_cache or 0.0), setting.step_cache is not None),
        switched(
            tdc(
                setting.tau or 0.0,
                max_skips=setting.max_skips,
                together=setting.together,
                residual=setting.residual_delta,
                shared=setting.shared,
            ),
            setting.tau is not None,
        ),
        switched(
            pdr(
                limit,
                scope="every_compute" if setting.every_compute else "post_skip",
                refresh_int8=setting.refresh_int8,
            ),
            setting.refresh_int8 or setting.outlier_ratio is not None,
        ),
    ]
    policy = chain(*parts)
    routes = ALL_ROUTES if quantized else (Route.BF16,)
    return policy._replace(routes=routes, skips=True, outlier_rule=quantized)


def num_steps(grid: BlockGrid) -> int:
    """Steps of a run.

    Raises:
      ValueError: the grid does not say.
    """
    if grid.num_steps is None:
        raise ValueError("expected a grid with num_steps, found None")
    return grid.num_steps


def recording_policy() -> Policy:
    """INT8 everywhere and no skips, with a delta cache so that its change is known."""
    return fixed(route=Route.INT8)._replace(skips=True)
