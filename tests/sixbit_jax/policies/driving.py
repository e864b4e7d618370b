"""Runs a policy on hand-made stats, as the sampler would."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from sixbit_jax.measured import NO_CHANGE, NOT_MEASURED
from sixbit_jax.policies import (
    BlockGrid,
    Plan,
    Policy,
    PolicyState,
    Stats,
    StepIndex,
    full_precision_plan,
)
from sixbit_jax.routes import Route

SITES = ("attn_in", "attn_out", "ff_in", "ff_mid")


def grid(num_blocks: int = 3, **options) -> BlockGrid:
    """MACs in the proportions of a transformer: q k v, o, up, down."""
    macs = np.tile(np.array([3.0, 1.0, 4.0, 4.0]), (num_blocks, 1))
    return BlockGrid(num_blocks, SITES, macs, **options)


def at(index: int, count: int = 50, latent_change: float = 0.0) -> StepIndex:
    return StepIndex(jnp.int32(index), jnp.int32(count), jnp.float32(latent_change))


def start(num_blocks: int = 3) -> Plan:
    return full_precision_plan(num_blocks, len(SITES))


def empty_stats(num_blocks: int, num_sites: int) -> Stats:
    """Stats of a step that measured nothing."""
    return Stats(
        computed=jnp.zeros((num_blocks,), bool),
        gamma=jnp.zeros((num_blocks,), jnp.float32),
        delta_change=jnp.zeros((num_blocks,), jnp.float32),
        outlier=jnp.zeros((num_blocks, num_sites), jnp.float32),
        route=jnp.full((num_blocks, num_sites), Route.BF16, jnp.int32),
        error=jnp.full((num_blocks, num_sites), NOT_MEASURED, jnp.float32),
        output_change=jnp.array(NO_CHANGE, jnp.float32),
        latent_change=jnp.array(0.0, jnp.float32),
        attention_density=jnp.zeros((num_blocks,), jnp.float32),
    )


def measured(plan: Plan, **fields) -> Stats:
    """Stats of a step that ran `plan`; per-block fields are 0 where it skipped."""
    blocks, sites = plan.route.shape
    stats = empty_stats(blocks, sites)._replace(computed=~plan.skip, route=plan.route)
    for name, value in fields.items():
        value = jnp.asarray(value, jnp.float32)
        if name == "shared_change" or getattr(stats, name).ndim:
            value = jnp.where(plan.skip, 0.0, jnp.broadcast_to(value, (blocks,)))
        stats = stats._replace(**{name: value})
    return stats


def drive(
    policy: Policy,
    steps: Sequence[dict] | int,
    *,
    num_blocks: int = 3,
    latent_change: Callable[[int], float] = lambda _: 0.0,
    branch: int = 0,
) -> tuple[list[Plan], PolicyState]:
    """All plans of a run whose step t measures `steps[t]`, and the last state."""
    if isinstance(steps, int):
        steps = [{"gamma": 0.1, "delta_change": 0.1}] * steps
    state = policy.init(grid(num_blocks, branch=branch))
    plans = []
    for index, fields in enumerate(steps):
        step = at(index, len(steps), latent_change(index))
        plan = policy.plan(state, step, start(num_blocks))
        stats = measured(plan, **{"latent_change": step.latent_change, **fields})
        state = policy.update(state, plan, stats)
        plans.append(plan)
    return plans, state


def skips(plans: list[Plan]) -> np.ndarray:
    return np.array([plan.skip for plan in plans])


def routes(plans: list[Plan]) -> np.ndarray:
    return np.array([plan.route for plan in plans])
