"""A whole-step cache, the field's usual baseline (TeaCache, EasyCache)."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sixbit_jax.measured import NO_CHANGE, NOT_MEASURED
from sixbit_jax.policies._common import (
    checked_count,
    checked_number,
    is_last,
    with_skips,
)
from sixbit_jax.policies.base import BlockGrid, Plan, Policy, Stats, StepIndex
from sixbit_jax.policies.parameters import Number, Whole, declared


class StepCacheState(NamedTuple):
    """Numbers of the rule, and what happened so far.

    Attributes:
      output_change: relative change of the output at the last computed step
        (`NO_CHANGE`: none).
      ratio: the same over the change of the latents at that step, k (none: -1).
      accumulated: expected output change of the skips since then.
      in_a_row: skips since then.
      computed: computed steps.
    """

    threshold: Float[Array, ""]
    max_skips: Int[Array, ""]
    warmup: Int[Array, ""]
    output_change: Float[Array, ""]
    ratio: Float[Array, ""]
    accumulated: Float[Array, ""]
    in_a_row: Int[Array, ""]
    computed: Int[Array, ""]


@declared
def step_cache(
    threshold: Annotated[float, Number(finite=True)],
    *,
    max_skips: Annotated[int, Whole(1)] = 4,
    warmup: Annotated[int, Whole(2)] = 2,
) -> Policy:
    """Skips all blocks of a step while the expected output change stays small.

        k        = output change / latent change, both relative L1, last computed step
        expected = k * latent change of this step
        skip     iff sum of expected since the last computed step < threshold

    (EasyCache, arXiv 2507.02860; TeaCache, arXiv 2411.19108, predicts the change from
    the modulated input by a polynomial fitted per model.) All blocks skipping is the
    reuse of one residual for the whole stack, which is what those caches store.
    Where the latent change is unknown or zero, the last output change is expected.

    Args:
      threshold: limit of the accumulated change; 0 skips nothing.
      max_skips: longest run of skipped steps, at least 1.
      warmup: computed steps before the first skip, at least 2.

    Raises:
      ValueError: threshold negative or not finite, max_skips below 1, warmup below 2.
    """
    init = _Init(threshold, max_skips, warmup)
    return Policy(init=init, plan=_plan, update=_update, skips=True, group=None)


@dataclass(frozen=True)
class _Init:
    threshold: float
    max_skips: int
    warmup: int

    def __call__(self, grid: BlockGrid) -> StepCacheState:
        del grid
        return StepCacheState(
            threshold=jnp.float32(self.threshold),
            max_skips=jnp.int32(self.max_skips),
            warmup=jnp.int32(self.warmup),
            output_change=jnp.float32(NO_CHANGE),
            ratio=jnp.float32(NOT_MEASURED),
            accumulated=jnp.float32(0.0),
            in_a_row=jnp.int32(0),
            computed=jnp.int32(0),
        )


def _expected(state: StepCacheState, latent_change: Array | float) -> Array:
    latent_change = jnp.asarray(latent_change, jnp.float32)
    usable = (state.ratio >= 0) & (latent_change >= 0)
    by_ratio = jnp.where(usable, state.ratio, 0.0) * jnp.where(usable, latent_change, 0)
    return jnp.where(usable, by_ratio, state.output_change)


def _plan(state: StepCacheState, step: StepIndex, plan: Plan) -> Plan:
    total = state.accumulated + _expected(state, step.latent_change)
    # `NO_CHANGE` exceeds every threshold: without a change the step is computed.
    skip = (
        (total < state.threshold)
        & (state.in_a_row < state.max_skips)
        & (state.computed >= state.warmup)
        & ~is_last(step)
    )
    every = plan.skip.shape
    return with_skips(
        plan, jnp.broadcast_to(skip, every), jnp.broadcast_to(state.in_a_row, every)
    )


def _update(state: StepCacheState, plan: Plan, stats: Stats) -> StepCacheState:
    del plan
    done = stats.computed.any()
    change = jnp.asarray(stats.output_change, jnp.float32)
    latents = jnp.asarray(stats.latent_change, jnp.float32)
    compared = jnp.isfinite(change) & (change < NO_CHANGE)
    valid = compared & (latents > 0)
    ratio = jnp.where(valid, change / jnp.where(valid, latents, 1.0), NOT_MEASURED)
    expected = _expected(state, latents)
    return state._replace(
        output_change=jnp.where(
            done, jnp.where(compared, change, NO_CHANGE), state.output_change
        ),
        ratio=jnp.where(done, ratio, state.ratio),
        accumulated=jnp.where(done, 0.0, state.accumulated + expected),
        in_a_row=jnp.where(done, 0, state.in_a_row + 1),
        computed=state.computed + done.astype(jnp.int32),
    )


def uniform_skips(
    num_steps: int, fraction: float, *, max_skips: int = 4, warmup: int = 2
) -> np.ndarray:
    """Whole steps to skip, evenly spread, for `fixed(skip=...)`.

    The step cache at a skip fraction that is given instead of found.

    Args:
      num_steps: denoising steps.
      fraction: skipped steps / all steps.
      max_skips: longest run of skipped steps.
      warmup: steps at the start that are computed; so is the last one.

    Returns:
      bool [num_steps], round(fraction * num_steps) of them true.

    Raises:
      ValueError: an argument is out of range, or so many skips do not fit.
    """
    owner = "uniform_skips"
    num_steps = checked_count(owner, "num_steps", num_steps, low=1)
    max_skips = checked_count(owner, "max_skips", max_skips, low=1)
    warmup = checked_count(owner, "warmup", warmup, low=1)
    count = round(checked_number(owner, "fraction", fraction, high=1.0) * num_steps)
    free = max(num_steps - 1 - warmup, 0)
    # Bresenham's line: step i of the free ones is skipped when the count moves on.
    edges = (np.arange(free + 1) * count) // max(free, 1)
    skip = np.zeros(num_steps, bool)
    skip[warmup : warmup + free] = np.diff(edges) > 0
    computed = np.flatnonzero(~skip)
    longest = int(np.diff(computed, append=num_steps).max()) - 1
    if count > free or longest > max_skips:
        raise ValueError(
            f"{owner}: {count} of {num_steps} steps cannot be skipped with warmup "
            f"{warmup}, the last step computed and at most {max_skips} in a row"
        )
    return skip
