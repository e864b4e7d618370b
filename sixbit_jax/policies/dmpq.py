"""DMPQ: NVFP4 where the predicted error is small, INT8 elsewhere, at every step.

6Bit-Diffusion (arXiv 2603.18742). The signal of a block is its relative change in the
previous step; a linear model fitted offline turns it into the error that an NVFP4
activation would cause at each site.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sixbit_jax.policies._common import checked_number
from sixbit_jax.policies.base import BlockGrid, Plan, Policy, Stats, StepIndex
from sixbit_jax.policies.predictor import ErrorPredictor
from sixbit_jax.routes import Route


class DmpqState(NamedTuple):
    """Attributes: the predictor, the threshold, the last gamma (NaN: none)."""

    alpha: Float[Array, "blocks sites"]
    beta: Float[Array, "blocks sites"]
    threshold: Float[Array, "sites"]
    hold_gamma: Bool[Array, ""]
    gamma: Float[Array, "blocks"]


def dmpq(
    predictor: ErrorPredictor,
    threshold: float | Mapping[str, float],
    *,
    hold_gamma: bool = True,
) -> Policy:
    """Chooses the route of every site from the change of its block one step earlier.

        route = NVFP4 if alpha * gamma[t-1] + beta <= threshold else INT8

    INT8 in the first step and wherever gamma is not finite.

    Args:
      predictor: alpha and beta of every block and site.
      threshold: largest predicted E_rel that runs in NVFP4; one number, or one per
        site.
      hold_gamma: after a skipped step, where gamma[t-1] does not exist, use the gamma
        of the last computed step; if False such a block runs in INT8 (which `pdr`
        asks for in any case).

    Raises:
      ValueError: a threshold is negative or not finite; in `init`: the predictor or
        the thresholds lack a site of the model, or have another number of blocks.
    """
    if isinstance(threshold, Mapping):
        named = tuple(
            (site, checked_number("dmpq", f"threshold[{site}]", value, finite=True))
            for site, value in sorted(threshold.items())
        )
    else:
        named = checked_number("dmpq", "threshold", threshold, finite=True)
    return Policy(
        init=_Init(predictor, named, bool(hold_gamma)),
        plan=_plan,
        update=_update,
        routes=(Route.NVFP4, Route.INT8),
    )


@dataclass(frozen=True)
class _Init:
    predictor: ErrorPredictor
    threshold: float | tuple[tuple[str, float], ...]
    hold_gamma: bool

    def __call__(self, grid: BlockGrid) -> DmpqState:
        alpha, beta = self.predictor.for_grid(grid)
        if isinstance(self.threshold, tuple):
            named = dict(self.threshold)
            missing = [site for site in grid.sites if site not in named]
            if missing:
                raise ValueError(
                    f"dmpq: no threshold for the sites {missing}, found {named}"
                )
            threshold = jnp.array([named[s] for s in grid.sites], jnp.float32)
        else:
            threshold = jnp.full((len(grid.sites),), self.threshold, jnp.float32)
        return DmpqState(
            alpha=jnp.asarray(alpha),
            beta=jnp.asarray(beta),
            threshold=threshold,
            hold_gamma=jnp.asarray(self.hold_gamma),
            gamma=jnp.full((grid.num_blocks,), jnp.nan, jnp.float32),
        )


def _plan(state: DmpqState, step: StepIndex, plan: Plan) -> Plan:
    del step
    gamma = state.gamma[:, None]
    predicted = state.alpha * gamma + state.beta
    # alpha may be 0, so that an infinite gamma must be caught by itself
    small = (predicted <= state.threshold) & jnp.isfinite(gamma)
    route = jnp.where(small, Route.NVFP4, Route.INT8).astype(jnp.int32)
    return plan._replace(route=route)


def _update(state: DmpqState, plan: Plan, stats: Stats) -> DmpqState:
    del plan
    held = jnp.where(state.hold_gamma, state.gamma, jnp.nan)
    return state._replace(gamma=jnp.where(stats.computed, stats.gamma, held))
