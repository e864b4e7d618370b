"""What a policy decides (`Plan`), what it learns from (`Stats`), and what it is.

A policy is three pure functions, in the manner of optax. Everything numeric that it
needs (thresholds, regression coefficients) lives in its state, which the sampler
passes to the compiled program as an argument: two policies that differ only in such
numbers share one compilation. `plan` and `update` are therefore module-level
functions or hashable callables, never closures over arrays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sixbit_jax.measured import NO_LIMIT, NOT_MEASURED
from sixbit_jax.routes import Route
from sixbit_jax.sparsity import SparseWay

PolicyState = Any


class BlockGrid(NamedTuple):
    """The static shape of what a policy decides over.

    Attributes:
      num_blocks: number of transformer blocks, L.
      sites: names of the sites of all blocks, in the order of the last plan axis, S.
      macs: multiply-accumulates of each site in one forward, [L, S]; 0 where a block
        does not have the site.
      branch: index of the guidance branch (0 conditional, 1 unconditional).
      num_steps: number of denoising steps, so that policies made for a number of
        steps can refuse another; None where it is not known.

    >>> import numpy as np
    >>> from sixbit_jax import BlockGrid
    >>> grid = BlockGrid(2, ("attn_in", "ff_in"), np.array([[3, 4], [3, 4]]))
    >>> grid.num_blocks, grid.macs.sum()
    (2, np.int64(14))
    """

    num_blocks: int
    sites: tuple[str, ...]
    macs: np.ndarray
    branch: int = 0
    num_steps: int | None = None


class StepIndex(NamedTuple):
    """Where the sampler stands: step `index` of `count`, traced scalars.

    `latent_change` is sum|x_t - x_{t-1}| / sum|x_{t-1}| of the sampler's latents,
    known before the step runs (0 in the first step).
    """

    index: Int[Array, ""]
    count: Int[Array, ""]
    latent_change: Float[Array, ""]


class Plan(NamedTuple):
    """All decisions of one step and one guidance branch.

    Attributes:
      skip: the block is replaced by X + cached delta.
      refresh: the block is computed after having been skipped.
      route: `Route` of each site.
      outlier_limit: a site whose live max|x| / mean|x| exceeds this runs in BF16;
        `NO_LIMIT` where the rule is off.
      int8_scores: attention multiplies quantized queries and keys; without effect if
        the sampler was told the precision of all blocks.
      sparse: self-attention is to chosen blocks of keys.
      sparse_tau: of the threshold test of sparse attention; another number needs no
        other program.
    """

    skip: Bool[Array, "blocks"]
    refresh: Bool[Array, "blocks"]
    route: Int[Array, "blocks sites"]
    outlier_limit: Float[Array, "blocks"]
    int8_scores: Bool[Array, "blocks"]
    sparse: Bool[Array, "blocks"]
    sparse_tau: Float[Array, "blocks"]


class Stats(NamedTuple):
    """What one forward pass measured.

    Attributes:
      computed: the block ran; the other per-block fields are 0 where it did not.
      gamma: sum|Y - X| / sum|X|.
      delta_change: sum|delta - delta_old| / sum|delta_old| against the delta of the
        last computed step; `NO_CHANGE` when there is none.
      outlier: max|x| / mean|x| of each site's live activation, before rotation.
      route: the route that ran, after the outlier rule.
      error: relative L1 error of the site's linear outputs with an NVFP4 instead of
        an unquantized activation (`E_rel`); `NOT_MEASURED` unless the sampler records
        errors.
      output_change: sum|F_t - F_{t-1}| / sum|F_{t-1}| of the guided model output;
        `NO_CHANGE` in the first step. The same number in every branch.
      latent_change: `StepIndex.latent_change` of this step, which `plan` saw and
        `update` would not see otherwise. Only `step_cache` uses it; `NOT_MEASURED` if
        the sampler does not say.
      shared_change: mean of `delta_change` over the guidance branches; None if the
        sampler does not say, which stands for `delta_change`.
      attention_density: share of the blocks of keys that self-attention computed
        exactly, mean over heads and queries: 1 where it was dense; `NOT_MEASURED` if
        the sampler does not say.
    """

    computed: Bool[Array, "blocks"]
    gamma: Float[Array, "blocks"]
    delta_change: Float[Array, "blocks"]
    outlier: Float[Array, "blocks sites"]
    route: Int[Array, "blocks sites"]
    error: Float[Array, "blocks sites"]
    output_change: Float[Array, ""]
    latent_change: Float[Array, ""] | float = NOT_MEASURED
    shared_change: Float[Array, "blocks"] | None = None
    attention_density: Float[Array, "blocks"] | float = NOT_MEASURED


class Policy(NamedTuple):
    """Three pure functions, and static facts that shape the compiled program.

    Attributes:
      init: BlockGrid -> PolicyState. Runs outside jit, once per guidance branch.
      plan: (PolicyState, StepIndex, Plan) -> Plan; refines the plan of this step.
      update: (PolicyState, Plan, Stats) -> PolicyState; learns from the step.
      routes: the routes it may put into a plan; the program holds only these (and
        BF16 where the outlier rule may fire).
      skips: whether it may skip blocks, or which ones; the delta cache holds no
        others (none at all if it is False).
      outlier_rule: whether its plans may have a finite `outlier_limit`.
      group: so many neighbouring blocks are skipped together or not at all, and share
        one delta, that of all of them; None for all blocks.
      attention: whether it chooses the precision of attention; the program then holds
        both.
      sparse: how it chooses blocks of keys, where it makes attention sparse; the
        program then holds dense and sparse attention.
    """

    init: Callable[[BlockGrid], PolicyState]
    plan: Callable[[PolicyState, StepIndex, Plan], Plan]
    update: Callable[[PolicyState, Plan, Stats], PolicyState]
    routes: tuple[Route, ...] = ()
    skips: bool | tuple[int, ...] = False
    outlier_rule: bool = False
    group: int | None = 1
    attention: bool = False
    sparse: SparseWay | None = None


def full_precision_plan(num_blocks: int, num_sites: int) -> Plan:
    """The plan that every policy starts from: compute everything in BF16."""
    return Plan(
        skip=jnp.zeros((num_blocks,), bool),
        refresh=jnp.zeros((num_blocks,), bool),
        route=jnp.full((num_blocks, num_sites), Route.BF16, jnp.int32),
        outlier_limit=jnp.full((num_blocks,), NO_LIMIT, jnp.float32),
        int8_scores=jnp.zeros((num_blocks,), bool),
        sparse=jnp.zeros((num_blocks,), bool),
        sparse_tau=jnp.zeros((num_blocks,), jnp.float32),
    )


__all__ = [
    "BlockGrid",
    "Plan",
    "Policy",
    "PolicyState",
    "Stats",
    "StepIndex",
    "full_precision_plan",
]
