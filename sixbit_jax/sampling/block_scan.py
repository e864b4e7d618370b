"""The scan over blocks: per block one `lax.cond` on skip, per site one switch."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from pallas_kernels.block_stats.api import block_stats
from sixbit_jax.models.blocks import BlockControl, BlockStats
from sixbit_jax.nn.site import SiteOptions
from sixbit_jax.policies.base import Plan, Stats
from sixbit_jax.sampling import delta_cache


@dataclass(frozen=True)
class CacheLayout:
    """Which blocks have a slot in the delta cache; static.

    Attributes:
      num_blocks: L.
      blocks: the blocks that may be skipped, ascending; empty for no cache.
      cache_format: how a delta is stored.
      group: so many neighbouring blocks share a slot, which holds the delta of all of
        them; they are skipped together. Divides L.
    """

    num_blocks: int
    blocks: tuple[int, ...]
    cache_format: delta_cache.Format
    group: int = 1

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups that have a slot, ascending."""
        return tuple(sorted({block // self.group for block in self.blocks}))

    @property
    def num_slots(self) -> int:
        """Slots per guidance branch.

        Groups without a slot of their own write to a shared spare one: one delta of
        memory instead of a second compiled block.
        """
        spare = 0 < len(self.groups) < self.num_blocks // self.group
        return len(self.groups) + spare

    def slots(self) -> np.ndarray:
        """Slot of each group, int32 [L / group]."""
        count = self.num_blocks // self.group
        slots = np.full(count, len(self.groups), np.int32)
        slots[list(self.groups)] = np.arange(len(self.groups))
        return slots


def _relative(change: Array, base: Array) -> Array:
    """change / base; infinite where there is nothing to compare with."""
    return jnp.where(base > 0, change / jnp.maximum(base, 1e-30), jnp.inf)


def _l1(x: Array) -> Array:
    return jnp.abs(x).sum(dtype=jnp.float32)


def scan_blocks(
    blocks: nnx.Module,
    x: Float[Array, "batch tokens D"],
    conditioning,
    plan: Plan,
    cache: delta_cache.DeltaCache | None,
    first_slot: Int[Array, ""],
    *,
    layout: CacheLayout,
    options: SiteOptions,
) -> tuple[Float[Array, "batch tokens D"], delta_cache.DeltaCache | None, Stats]:
    """Runs all blocks by the plan.

    Args:
      blocks: block module with a leading layer axis on every parameter.
      x: residual stream before the first block.
      conditioning: what every block reads. A field `per_layer`, if there is one, has
        a leading layer axis; each block is given its slice.
      plan: the decisions of this step and branch.
      cache: the delta cache, or None if nothing may be skipped.
      first_slot: first slot of this guidance branch.
      layout: which blocks have a slot.
      options: routes in the compiled program.

    Returns:
      The residual stream after the last block, the cache, and the stats (without
      the fields of the whole output).
    """
    graph, params = nnx.split(blocks)
    may_skip = jnp.asarray(np.isin(np.arange(layout.num_blocks), layout.blocks))
    skips = plan.skip & may_skip

    def measure(x, y, stored):
        """gamma, the change of the delta, and the delta as it is stored."""
        if stored is not None and layout.cache_format != "float32":
            # One row per token of the whole batch: its videos share the plan.
            flat = jax.tree.map(
                lambda part: part.reshape(-1, *part.shape[2:]), (x, y, stored)
            )
            found = block_stats(
                *flat,
                cache_format=layout.cache_format,
                implementation=options.implementation,
            )
            delta = jax.tree.map(
                lambda new, old: new.reshape(old.shape), found.delta, stored
            )
            return found.gamma, found.delta_change, delta
        before = x.astype(jnp.float32)
        delta = y.astype(jnp.float32) - before
        gamma = _relative(_l1(delta), _l1(before))
        if stored is None:
            return gamma, jnp.float32(jnp.inf), None
        return gamma, _relative(_l1(delta - stored), _l1(stored)), delta

    per_layer = getattr(conditioning, "per_layer", None)

    def run_block(x, layer):
        params, context, *decided = layer
        control = BlockControl(*decided)
        given = conditioning
        if context is not None:
            given = conditioning._replace(per_layer=context)
        return nnx.merge(graph, params)(x, given, control, options)

    def run_one(x, layer):
        y, sites = run_block(x, layer)
        gamma, _, _ = measure(x, y, None)
        return y, (gamma, sites)

    def compute(x, stored, layer):
        if group == 1:
            y, sites = run_block(x, layer)
            gamma, change, stored = measure(x, y, stored)
            return y, stored, (gamma, change, sites)
        y, (gamma, sites) = jax.lax.scan(run_one, x, layer)
        _, change, stored = measure(x, y, stored)
        return y, stored, (gamma, jnp.broadcast_to(change, gamma.shape), sites)

    def reuse(x, stored, layer):
        route = layer[2]
        y = (x.astype(jnp.float32) + delta_cache.decode(stored)).astype(x.dtype)
        zero = jnp.zeros(route.shape[:-1], jnp.float32)
        nothing = jnp.zeros(route.shape, jnp.float32)
        return y, stored, (zero, zero, BlockStats(nothing, route, nothing * jnp.nan))

    def body(carry, scanned):
        x, cache = carry
        layer, skip, slot = scanned
        if cache is None:
            x, stats = run_one(x, layer)
            return (x, cache), (stats[0], jnp.float32(jnp.inf), stats[1])
        # Only this delta goes through the conditional: with the whole cache as an
        # operand, XLA's CPU backend copies it in every block.
        stored = delta_cache.read(cache, slot)
        x, stored, stats = jax.lax.cond(skip, reuse, compute, x, stored, layer)
        return (x, delta_cache.write(cache, slot, stored)), stats

    group = 1 if cache is None else layout.group
    layers = (params, per_layer, plan.route, plan.outlier_limit, plan.int8_scores)
    first_skips = skips
    if group > 1:
        layers = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), layers)
        first_skips = skips.reshape(-1, group).all(1)
        skips = jnp.repeat(first_skips, group)
    slots = None if cache is None else jnp.asarray(layout.slots()) + first_slot
    (x, cache), stats = jax.lax.scan(body, (x, cache), (layers, first_skips, slots))
    if group > 1:
        stats = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stats)
    gamma, change, sites = stats
    change = jnp.where(may_skip, change, jnp.inf)
    stats = Stats(
        computed=~skips,
        gamma=gamma,
        delta_change=change,
        outlier=sites.outlier,
        route=sites.route,
        error=sites.error,
        output_change=jnp.float32(jnp.inf),
        latent_change=jnp.float32(0.0),
    )
    return x, cache, stats
