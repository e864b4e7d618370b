"""What a policy decides over, and the delta cache that its skips need."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sixbit_jax.formats import StoredWeight
from sixbit_jax.models.network import BlockStack
from sixbit_jax.policies import BlockGrid, Policy, PolicyState
from sixbit_jax.sampling import delta_cache
from sixbit_jax.sampling.block_scan import CacheLayout


def block_grid(model: Any, num_steps: int | None = None) -> BlockGrid:
    """What a policy decides over, for this network: the blocks of all its stacks."""
    sites = model.sites
    rows = []
    for stack in model.stacks:
        macs = dict(zip(stack.sites, stack.macs, strict=True))
        row = [macs.get(site, 0.0) for site in sites]
        rows.append(np.tile(np.array(row, np.float64), (stack.num_blocks, 1)))
    return BlockGrid(model.num_blocks, sites, np.concatenate(rows), num_steps=num_steps)


def skippable_blocks(policy: Policy, num_blocks: int) -> tuple[int, ...]:
    """The blocks that get a slot in the delta cache under `policy`."""
    if isinstance(policy.skips, bool):
        return tuple(range(num_blocks)) if policy.skips else ()
    outside = [block for block in policy.skips if not 0 <= block < num_blocks]
    if outside:
        raise ValueError(f"policy skips blocks {outside}: expected 0..{num_blocks - 1}")
    return tuple(sorted(set(policy.skips)))


def cache_layout(
    policy: Policy, stacks: tuple[BlockStack, ...], stored: delta_cache.Format
) -> CacheLayout:
    """Which blocks get a slot under `policy`, and which of them share one."""
    sizes = [stack.num_blocks for stack in stacks]
    num_blocks = sum(sizes)
    blocks = skippable_blocks(policy, num_blocks)
    group = math.gcd(*sizes) if policy.group is None else policy.group
    whole = len(blocks) in (0, num_blocks)
    # Groups that do not come out even, or only in part, have a slot per block.
    if any(size % group for size in sizes) or not whole:
        group = 1
    return CacheLayout(num_blocks, blocks, stored, group)


def is_quantized(model: Any) -> bool:
    """Whether the sites' weights are stored in a compressed format."""
    leaves = jax.tree.leaves(
        [nnx.state(blocks, nnx.Param) for blocks in model.blocks_by_stack().values()],
        is_leaf=lambda leaf: isinstance(leaf, StoredWeight),
    )
    return any(isinstance(leaf, StoredWeight) for leaf in leaves)


def policy_states(policy: Policy, grid: BlockGrid, branches: int) -> PolicyState:
    """The policy's state of each guidance branch, stacked."""
    states = [policy.init(grid._replace(branch=i)) for i in range(branches)]
    return jax.tree.map(lambda *leaves: jnp.stack([*map(jnp.asarray, leaves)]), *states)


__all__ = [
    "block_grid",
    "cache_layout",
    "is_quantized",
    "policy_states",
    "skippable_blocks",
]
