"""DMPQ: NVFP4 where the predicted error is small, INT8 elsewhere, at every step.

6Bit-Diffusion (arXiv 2603.18742). The signal of a block is its relative change in the
previous step; a linear model fitted offline turns it into the error that an NVFP4
activation would cause at each site.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

from sixbit_jax.measured import NO_CHANGE, NOT_MEASURED
from sixbit_jax.policies._common import StaticArray, checked_number
from sixbit_jax.policies.base import BlockGrid, Plan, Policy, Stats, StepIndex
from sixbit_jax.policies.parameters import (
    Flag,
    Kind,
    OrNone,
    RouteName,
    Whole,
    are_names,
    declared,
    is_matrix,
    is_number,
)
from sixbit_jax.policies.predictor import ErrorPredictor
from sixbit_jax.routes import Route


def _is_predictor(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"sites", "alpha", "beta"}
        and are_names(value["sites"])
        and is_matrix(value["alpha"])
        and is_matrix(value["beta"])
    )


def _is_threshold(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(map(is_number, value.values()))
    return is_number(value)


_PREDICTOR = Kind("sites, alpha and beta, the last two [blocks, sites]", _is_predictor)
_THRESHOLD = Kind("a number, or one for each site", _is_threshold)
_MATRIX = Kind("a list of equally long lists of numbers", is_matrix)


class DmpqState(NamedTuple):
    """Numbers of the rule, and the last gamma (`NOT_MEASURED`: none).

    Attributes:
      weight: factor on the predicted error; 1 unless the importance of sites is known.
      residual: the error is relative to the residual stream (times gamma).
      final_int8: number of last steps that run in INT8.
      stable_route: where the predicted error is small.
    """

    alpha: Float[Array, "blocks sites"]
    beta: Float[Array, "blocks sites"]
    threshold: Float[Array, "sites"]
    weight: Float[Array, "blocks sites"]
    residual: Bool[Array, ""]
    final_int8: Int[Array, ""]
    stable_route: Int[Array, ""]
    hold_gamma: Bool[Array, ""]
    gamma: Float[Array, "blocks"]


@declared
def dmpq(
    predictor: Annotated[ErrorPredictor, _PREDICTOR],
    threshold: Annotated[float | Mapping[str, float], _THRESHOLD],
    *,
    importance: Annotated[ArrayLike | None, OrNone(_MATRIX)] = None,
    residual: Annotated[bool, Flag()] = False,
    final_int8: Annotated[int, Whole(0)] = 0,
    hold_gamma: Annotated[bool, Flag()] = True,
    stable_route: Annotated[Route, RouteName()] = Route.NVFP4,
) -> Policy:
    """Chooses the route of every site from the change of its block one step earlier.

        route = NVFP4 if alpha * gamma[t-1] + beta <= threshold else INT8

    INT8 in the first step and wherever gamma was not measured. The paper's rule
    compares the error relative to a linear's own output. Three options, all off by
    default, compare what it does to the video instead.

    Args:
      predictor: alpha and beta of every block and site.
      threshold: largest predicted E_rel that runs in NVFP4; one number, or one per
        site.
      importance: factor on the predicted error of each block and site, [L, S]; for
        example the measured damage of NVFP4 there over its mean E_rel and its share of
        the work (`calibration`), which makes the threshold a price per bit.
      residual: multiply by gamma[t-1], which makes the error relative to the residual
        stream that the block adds to.
      final_int8: so many last steps run in INT8: nothing corrects their errors.
      hold_gamma: after a skipped step, where gamma[t-1] does not exist, use the gamma
        of the last computed step; if False such a block runs in INT8 (which `pdr`
        asks for in any case).
      stable_route: in place of NVFP4; INT8 makes every site INT8, for devices that
        only emulate NVFP4 (`sixbit_jax.hardware.fast_stable_route`).

    Raises:
      ValueError: importance is not [L, S] or holds values that are negative or not
        finite; final_int8 is negative; a threshold is negative or not finite; in
        `init`: the predictor or the thresholds lack a site of the model, or have
        another number of blocks.

    >>> import numpy as np
    >>> from sixbit_jax import ErrorPredictor, dmpq
    >>> sites = ("attn_in", "attn_out", "ff_in", "ff_mid")
    >>> slope, intercept = np.full((8, 4), 0.1), np.full((8, 4), 0.05)
    >>> policy = dmpq(ErrorPredictor(sites, slope, intercept), threshold=0.08)
    >>> [route.name for route in policy.routes]
    ['NVFP4', 'INT8']
    """
    if isinstance(threshold, Mapping):
        named = tuple(
            (site, checked_number("dmpq", f"threshold[{site}]", value, finite=True))
            for site, value in sorted(threshold.items())
        )
    else:
        named = checked_number("dmpq", "threshold", threshold, finite=True)
    factors = None if importance is None else StaticArray(importance, np.float32)
    if factors is not None and not (
        np.isfinite(factors.values).all() and (factors.values >= 0).all()
    ):
        raise ValueError("dmpq: importance must be finite and not negative")
    init = _Init(
        predictor=predictor,
        threshold=named,
        importance=factors,
        residual=residual,
        final_int8=final_int8,
        hold_gamma=hold_gamma,
        stable_route=stable_route,
    )
    return Policy(
        init=init,
        plan=_plan,
        update=_update,
        routes=tuple(dict.fromkeys((init.stable_route, Route.INT8))),
    )


@dataclass(frozen=True)
class _Init:
    predictor: ErrorPredictor
    threshold: float | tuple[tuple[str, float], ...]
    importance: StaticArray | None
    residual: bool
    final_int8: int
    hold_gamma: bool
    stable_route: Route

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
        weight = np.ones(alpha.shape, np.float32)
        if self.importance is not None:
            if self.importance.values.shape != alpha.shape:
                raise ValueError(
                    f"dmpq: importance must be [blocks, sites] {alpha.shape}, found "
                    f"{self.importance.values.shape}"
                )
            weight = self.importance.values
        return DmpqState(
            alpha=jnp.asarray(alpha),
            beta=jnp.asarray(beta),
            threshold=threshold,
            weight=jnp.asarray(weight),
            residual=jnp.asarray(self.residual),
            final_int8=jnp.int32(self.final_int8),
            stable_route=jnp.int32(self.stable_route),
            hold_gamma=jnp.asarray(self.hold_gamma),
            gamma=jnp.full((grid.num_blocks,), NOT_MEASURED, jnp.float32),
        )


def _plan(state: DmpqState, step: StepIndex, plan: Plan) -> Plan:
    gamma = state.gamma[:, None]
    predicted = state.weight * (state.alpha * gamma + state.beta)
    predicted = jnp.where(state.residual, predicted * gamma, predicted)
    # alpha may be 0, so that a gamma that is none must be caught by itself
    small = (predicted <= state.threshold) & (gamma >= 0) & (gamma < NO_CHANGE)
    small &= step.index < step.count - state.final_int8
    route = jnp.where(small, state.stable_route, Route.INT8).astype(jnp.int32)
    return plan._replace(route=route)


def _update(state: DmpqState, plan: Plan, stats: Stats) -> DmpqState:
    del plan
    held = jnp.where(state.hold_gamma, state.gamma, NOT_MEASURED)
    return state._replace(gamma=jnp.where(stats.computed, stats.gamma, held))
