"""The scans over blocks: per block one `lax.cond` on skip, per site one switch."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from pallas_kernels.block_stats.api import block_stats
from sixbit_jax.measured import NO_CHANGE, NOT_MEASURED
from sixbit_jax.models.blocks import BlockControl, BlockStats
from sixbit_jax.models.network import BlockStack, for_layer, layers_of
from sixbit_jax.nn.site import SiteOptions
from sixbit_jax.nn.varying import vary, varying_axes
from sixbit_jax.policies.base import Plan, Stats
from sixbit_jax.routes import Route
from sixbit_jax.sampling import delta_cache


@dataclass(frozen=True)
class CacheLayout:
    """Which blocks have a slot in the delta cache; static.

    Attributes:
      num_blocks: L.
      blocks: the blocks that may be skipped, ascending; empty for no cache.
      cache_format: how a delta is stored.
      group: so many neighbouring blocks share a slot, which holds the delta of all of
        them; they are skipped together. Divides the blocks of every stack.
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


class _Layer(NamedTuple):
    """What a block is scanned over, or a group of blocks with a leading axis.

    Attributes:
      params: of the block; its number where weights are split over a mesh.
      context: what this layer reads on its own.
      control: its slice of the plan.
    """

    params: Any
    context: Any
    control: BlockControl


class _Measured(NamedTuple):
    """What a block measured, or a group of blocks with a leading axis.

    Attributes:
      sums: of |delta|, |X|, |delta - old| and |old|, over the tokens of this device.
      sites: stats of the sites.
    """

    sums: Float[Array, "*blocks 4"]
    sites: BlockStats


def _relative(change: Array, base: Array) -> Array:
    ratio = jnp.where(base > 0, change / jnp.maximum(base, 1e-30), NO_CHANGE)
    return jnp.where(jnp.isfinite(ratio), ratio, NO_CHANGE)


@dataclass(frozen=True, eq=False)
class _StackScan:
    """The blocks of one stack, as functions of the residual stream.

    Attributes:
      graph: the graph of one block.
      conditioning: what every block reads.
      options: routes in the compiled program.
      cache_format: how a delta is stored.
      group: blocks that share a slot.
      axes: mesh axes over which the run differs.
      shards: this device's part of all blocks' weights, where they are split.
    """

    graph: nnx.GraphDef
    conditioning: Any
    options: SiteOptions
    cache_format: delta_cache.Format
    group: int
    axes: frozenset[str]
    shards: nnx.State | None = None

    def weights(self, number: Array) -> nnx.State:
        """The whole weights of a block, gathered; of the first after the last."""
        count = jax.tree.leaves(self.shards)[0].shape[0]
        own = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, number % count, keepdims=False),
            self.shards,
        )
        return self.options.axes.gather(own)

    def run_block(self, x: Array, layer: _Layer) -> tuple[Array, BlockStats]:
        given = for_layer(self.conditioning, layer.context)
        block: Any = nnx.merge(self.graph, layer.params)
        return block(x, given, layer.control, self.options)

    def measure(self, x: Array, y: Array, stored: Any) -> tuple[Array, Any]:
        """The sums of `_Measured`, and the delta as it is stored."""
        if stored is not None and self.cache_format != "float32":
            # One row per token of the whole batch: its videos share the plan.
            flat = jax.tree.map(
                lambda part: part.reshape(-1, *part.shape[2:]), (x, y, stored)
            )
            found = block_stats(
                *flat,
                cache_format=self.cache_format,
                implementation=self.options.implementation,
            )
            delta = jax.tree.map(
                lambda new, old: new.reshape(old.shape), found.delta, stored
            )
            rows = found.row_sums.reshape(*x.shape[:2], 4)
            return self.options.axes.sum_of_tokens(rows), delta
        before = x.astype(jnp.float32)
        delta = y.astype(jnp.float32) - before
        parts = [delta, before]
        if stored is not None:
            parts += [delta - stored, stored]
        rows = jnp.stack([jnp.abs(part).sum(-1) for part in parts], -1)
        sums = self.options.axes.sum_of_tokens(rows)
        if stored is None:
            return jnp.concatenate([sums, jnp.zeros_like(sums)]), None
        return sums, delta

    def run_one(self, x: Array, layer: _Layer) -> tuple[Array, _Measured]:
        """One block without a slot."""
        y, sites = self.run_block(x, layer)
        return y, _Measured(self.measure(x, y, None)[0], sites)

    def run_group(self, x: Array, layers: _Layer) -> tuple[Array, _Measured]:
        """Blocks that share a slot, one after the other."""
        if self.shards is None:
            return jax.lax.scan(self.run_one, x, layers)

        def body(carry: tuple[Any, Any], layer: _Layer):
            x, ahead = carry
            following = self.weights(layer.params + 1)
            x, measured = self.run_one(x, layer._replace(params=ahead))
            return (x, following), measured

        start = (x, self.weights(layers.params[0]))
        (x, _), measured = jax.lax.scan(body, start, layers)
        return x, measured

    def compute(self, x: Array, stored: Any, layer: _Layer) -> tuple[Any, ...]:
        """What runs where the slot is not skipped."""
        if self.group == 1:
            y, sites = self.run_block(x, layer)
            sums, stored = self.measure(x, y, stored)
            measured = _Measured(sums, sites)
        else:
            y, measured = self.run_group(x, layer)
            whole, stored = self.measure(x, y, stored)
            own = measured.sums[:, :2]
            change = jnp.broadcast_to(whole[2:], own.shape)
            measured = measured._replace(sums=jnp.concatenate([own, change], 1))
        return vary((y, stored, measured), self.axes)

    def reuse(self, x: Array, stored: Any, layer: _Layer) -> tuple[Any, ...]:
        """What runs where the slot is skipped."""
        route = layer.control.route
        y = (x.astype(jnp.float32) + delta_cache.decode(stored)).astype(x.dtype)
        zero = jnp.zeros(route.shape[:-1], jnp.float32)
        sums = jnp.zeros((*zero.shape, 4), jnp.float32)
        nothing = jnp.zeros(route.shape, jnp.float32)
        error = jnp.full_like(nothing, NOT_MEASURED)
        sites = BlockStats(nothing, route, error, zero, layer.control.history)
        return vary((y, stored, _Measured(sums, sites)), self.axes)

    def computed_apart(self, x: Array, stored: Any, layer: _Layer, skip: Array):
        """What runs where not all devices skip the slot that share its weights.

        Those that do take part in gathering, and throw away what they compute.
        """
        found = self.compute(x, stored, layer)
        other = self.reuse(x, stored, layer)
        return jax.tree.map(lambda new, old: jnp.where(skip, old, new), found, other)

    def run_slot(self, x: Array, stored: Any, layer: _Layer, skip: Array):
        """One slot's blocks: computed, or its delta added."""
        mesh_axes = self.options.axes
        if self.group > 1 and mesh_axes.apart:
            return jax.lax.cond(
                mesh_axes.all_skip(skip),
                lambda: self.reuse(x, stored, layer),
                lambda: self.computed_apart(x, stored, layer, skip),
            )
        return jax.lax.cond(skip, self.reuse, self.compute, x, stored, layer)

    def body(self, carry: tuple[Any, Any, Any], scanned: tuple[Any, ...]):
        """One slot's blocks."""
        x, cache, ahead = carry
        layer, skip, slot = scanned
        if ahead is not None:
            # Asked for before the block runs, so that both may at once.
            following = self.weights(layer.params + 1)
            layer, ahead = layer._replace(params=ahead), following
        if cache is None:
            x, measured = self.run_one(x, layer)
            return (vary(x, self.axes), cache, ahead), measured
        # Only this delta goes through the conditional: with the whole cache as an
        # operand, XLA's CPU backend copies it in every block.
        stored = delta_cache.read(cache, slot)
        x, stored, measured = self.run_slot(x, stored, layer, skip)
        return (x, delta_cache.write(cache, slot, stored), ahead), measured

    def start(self, x: Array, cache: Any) -> tuple[Any, Any, Any]:
        """The carry before the first slot."""
        ahead = None
        if self.shards is not None and self.group == 1:
            ahead = self.weights(jnp.int32(0))
        return (*vary((x, cache), self.axes), ahead)


def _scan_stack(
    stack: BlockStack,
    blocks: nnx.Module,
    first: int,
    x: Array,
    conditioning: Any,
    plan: Plan,
    cache: delta_cache.DeltaCache | None,
    first_slot: Array,
    layout: CacheLayout,
    options: SiteOptions,
    columns: list[int],
    history: Array | None,
) -> tuple[Array, Any, Bool[Array, "blocks"], _Measured]:
    """Runs one stack, whose blocks have the numbers from `first` on."""
    graph, params = nnx.split(blocks)
    rows = slice(first, first + stack.num_blocks)
    group = 1 if cache is None else layout.group
    route = plan.route[rows]
    if len(columns) < route.shape[1]:
        route = route[:, np.array(columns)]
    control = BlockControl(
        route,
        plan.outlier_limit[rows],
        plan.int8_scores[rows],
        plan.sparse[rows],
        plan.sparse_tau[rows],
        None if history is None else history[rows],
    )
    split = params if options.axes.weights else None
    own = params if split is None else jnp.arange(stack.num_blocks)
    layers = _Layer(own, layers_of(conditioning, stack.name), control)
    may_skip = np.isin(np.arange(layout.num_blocks), layout.blocks)[rows]
    skips = plan.skip[rows] & jnp.asarray(may_skip)
    of_groups = skips
    if group > 1:
        layers = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), layers)
        of_groups = skips.reshape(-1, group).all(1)
        skips = jnp.repeat(of_groups, group)
    slots = None
    if cache is not None:
        those = layout.slots()[first // group : (first + stack.num_blocks) // group]
        slots = jnp.asarray(those) + first_slot
    axes = varying_axes(params, conditioning, plan, x, cache)
    run = _StackScan(
        graph, conditioning, options, layout.cache_format, group, axes, split
    )
    (x, cache, _), measured = jax.lax.scan(
        run.body, run.start(x, cache), (layers, of_groups, slots)
    )
    if group > 1:
        measured = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), measured)
    # Nothing is compared where nothing is kept, also not with what a slot shares.
    kept = jnp.asarray(may_skip)[:, None] | (jnp.arange(4) < 2)
    sums = jnp.where(kept, measured.sums, 0.0)
    return x, cache, skips, measured._replace(sums=sums)


def _over_all_sites(sites: BlockStats, columns: list[int], count: int) -> BlockStats:
    """The stats of one stack's sites, in their columns among the sites of all."""
    if len(columns) == count:
        return sites
    shape = (sites.route.shape[0], count)
    where = (slice(None), np.array(columns))
    return BlockStats(
        outlier=jnp.zeros(shape, jnp.float32).at[where].set(sites.outlier),
        route=jnp.full(shape, Route.BF16, jnp.int32).at[where].set(sites.route),
        error=jnp.full(shape, NOT_MEASURED, jnp.float32).at[where].set(sites.error),
        attention_density=sites.attention_density,
        history=sites.history,
    )


def scan_blocks(
    network: Any,
    x: Float[Array, "batch tokens D"],
    conditioning: Any,
    plan: Plan,
    cache: delta_cache.DeltaCache | None,
    first_slot: Int[Array, ""],
    *,
    layout: CacheLayout,
    options: SiteOptions,
    history: UInt8[Array, "blocks *state"] | None = None,
) -> tuple[
    Float[Array, "batch tokens D"], delta_cache.DeltaCache | None, Stats, Array | None
]:
    """Runs all blocks of all stacks by the plan.

    Args:
      network: a `models.network.Network`.
      x: residual stream before the first block.
      conditioning: what every block reads.
      plan: the decisions of this step and branch.
      cache: the delta cache, or None if nothing may be skipped.
      first_slot: first slot of this guidance branch.
      layout: which blocks have a slot.
      options: routes in the compiled program.
      history: of sparse attention, see `nn.sparse_attention.no_history`.

    Returns:
      The residual stream after the last block, the cache, the stats (without the
      fields of the whole output), and the history for the next step.
    """
    sites, first, parts = network.sites, 0, []
    blocks = network.blocks_by_stack()
    for stack in network.stacks:
        columns = [sites.index(name) for name in stack.sites]
        x, cache, skips, measured = _scan_stack(
            stack,
            blocks[stack.name],
            first,
            x,
            conditioning,
            plan,
            cache,
            first_slot,
            layout,
            options,
            columns,
            history,
        )
        found = _over_all_sites(measured.sites, columns, len(sites))
        parts.append((~skips, measured._replace(sites=found)))
        first += stack.num_blocks
    computed, measured = (
        parts[0]
        if len(parts) == 1
        else jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)
    )
    # One sum over the mesh for all blocks: no plan of this step asks for it.
    sums = options.axes.total(measured.sums)
    ratios = _relative(sums[:, ::2], sums[:, 1::2])
    ratios = jnp.where(computed[:, None], ratios, 0.0)
    stats = Stats(
        computed=computed,
        gamma=ratios[:, 0],
        delta_change=ratios[:, 1],
        outlier=measured.sites.outlier,
        route=measured.sites.route,
        error=measured.sites.error,
        output_change=jnp.float32(NO_CHANGE),
        latent_change=jnp.float32(0.0),
        attention_density=measured.sites.attention_density,
    )
    return x, cache, stats, measured.sites.history


__all__ = ["CacheLayout", "scan_blocks"]
