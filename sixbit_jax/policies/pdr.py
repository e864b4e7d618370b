"""PDR, Purified Delta Refresh: what enters the delta cache is computed with care.

6Bit-Diffusion (arXiv 2603.18742). Quantization noise in a cached delta is used again
at every skip, so it grows with their number.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sixbit_jax.measured import NO_LIMIT
from sixbit_jax.policies._common import no_update
from sixbit_jax.policies.base import BlockGrid, Plan, Policy, StepIndex
from sixbit_jax.policies.parameters import Flag, Number, OrNone, Text, declared
from sixbit_jax.routes import Route


class PdrState(NamedTuple):
    """Attributes: the limit of rule A, where it holds, and whether rule B holds."""

    outlier_ratio: Float[Array, ""]
    every_compute: Bool[Array, ""]
    refresh_int8: Bool[Array, ""]


@declared
def pdr(
    outlier_ratio: Annotated[float | None, OrNone(Number(low=1.0))] = 25.0,
    *,
    scope: Annotated[Literal["post_skip", "every_compute"], Text()] = "post_skip",
    refresh_int8: Annotated[bool, Flag()] = True,
) -> Policy:
    """Raises the precision of blocks that write the delta cache.

    Rule A: a site with max|x| / mean|x| > outlier_ratio runs in BF16. Measured on the
    live activation, so that only the limit is in the plan.
    Rule B: the other sites of a block that returns from skipping run in INT8; a site
    that was planned in BF16 stays there.

    Place it after the policies that choose routes and skips.

    Args:
      outlier_ratio: limit of rule A, at least 1; None turns it off.
      scope: where rule A holds: blocks that return from skipping, or every computed
        block (each writes its delta).
      refresh_int8: whether rule B holds.

    Raises:
      ValueError: outlier_ratio below 1 or NaN, an unknown scope.

    >>> from sixbit_jax import pdr
    >>> [route.name for route in pdr().routes]
    ['INT8', 'BF16']
    >>> pdr(None).outlier_rule
    False
    """
    if scope not in ("post_skip", "every_compute"):
        raise ValueError(
            f"pdr: scope must be 'post_skip' or 'every_compute', found {scope!r}"
        )
    return Policy(
        init=_Init(outlier_ratio, scope == "every_compute", refresh_int8),
        plan=_plan,
        update=no_update,
        # BF16 is listed because a plan's sites may already be in it: rule B only ever
        # raises a precision.
        routes=(Route.INT8, Route.BF16),
        outlier_rule=outlier_ratio is not None,
    )


@dataclass(frozen=True)
class _Init:
    outlier_ratio: float | None
    every_compute: bool
    refresh_int8: bool

    def __call__(self, grid: BlockGrid) -> PdrState:
        del grid
        limit = NO_LIMIT if self.outlier_ratio is None else self.outlier_ratio
        return PdrState(
            outlier_ratio=jnp.float32(min(limit, NO_LIMIT)),
            every_compute=jnp.asarray(self.every_compute),
            refresh_int8=jnp.asarray(self.refresh_int8),
        )


def _plan(state: PdrState, step: StepIndex, plan: Plan) -> Plan:
    del step
    purify = plan.refresh & state.refresh_int8
    narrow = jnp.asarray([route.bits < Route.INT8.bits for route in Route])[plan.route]
    route = jnp.where(purify[:, None] & narrow, Route.INT8, plan.route)
    route = route.astype(jnp.int32)
    guarded = jnp.where(state.every_compute, ~plan.skip, plan.refresh)
    limit = jnp.where(guarded, state.outlier_ratio, NO_LIMIT)
    return plan._replace(
        route=route, outlier_limit=jnp.minimum(plan.outlier_limit, limit)
    )
