"""What happened in a sampling run: the plans and stats of all steps, as arrays."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class Trace(NamedTuple):
    """Plans and stats; one row per step and guidance branch.

    Batched guidance has one branch. `gamma`, `delta_change`, `outlier`, `error`
    and `attention_density` are 0 (`error`: -1) where the block was skipped; see
    `policies.Stats` for their definitions, and `sixbit_jax.measured` for the values
    that stand for "not measured" (-1) and "nothing to compare with" (1e30).

    Attributes:
      timestep: diffusion timestep of each step.
      skip, refresh: the plan.
      route: the route that ran (for a skipped block, the one it was planned).
      int8_scores: attention multiplied quantized queries and keys (for a skipped
        block: it would have).
      attention_density: share of the blocks of keys that self-attention computed
        exactly; 1 where it was dense.
      output_change: relative L1 change of the guided output, per step.
    """

    timestep: Int[Array, "steps"] | Float[Array, "steps"]
    skip: Bool[Array, "steps branches blocks"]
    refresh: Bool[Array, "steps branches blocks"]
    route: Int[Array, "steps branches blocks sites"]
    gamma: Float[Array, "steps branches blocks"]
    delta_change: Float[Array, "steps branches blocks"]
    outlier: Float[Array, "steps branches blocks sites"]
    error: Float[Array, "steps branches blocks sites"]
    output_change: Float[Array, "steps"]
    int8_scores: Bool[Array, "steps branches blocks"]
    attention_density: Float[Array, "steps branches blocks"]


class SampleResult(NamedTuple):
    """What a run leaves.

    Attributes:
      latents: the latents of the videos, float32.
      trace: what happened.
      steps_done: finished steps of a run with a callback, which may have ended it; None
        where all of them ran.
    """

    latents: Float[Array, "batch F C H W"]
    trace: Trace
    steps_done: Int[Array, ""] | int | None = None
