"""What a sampling program is made of: its static part and its traced arguments."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from sixbit_jax.nn.site import SiteOptions
from sixbit_jax.policies.base import PolicyState
from sixbit_jax.sampling.block_scan import CacheLayout
from sixbit_jax.sampling.schedulers.base import Scheduler


@dataclass(frozen=True)
class Program:
    """Everything static of a sampling program: the key of its compilation.

    Attributes:
      scheduler: the sampler's update rule.
      num_steps: denoising steps.
      plan, update: the policy's pure functions.
      site: routes in the program, and what is measured.
      layout: which blocks have a slot in the delta cache.
      branches: guidance branches with a plan of their own (2: sequential guidance).
      guided: whether there is an unconditional prediction.
      dtype: compute dtype of the network.
      watched: whether a callback per step can end the run.
      switch: the first step of the second network of a pair.
      extra_frames: leading latent frames that are computed and not returned.
      mesh: the devices that share the run, or None; `site.axes` says what is split.
    """

    scheduler: Scheduler
    num_steps: int
    plan: Any
    update: Any
    site: SiteOptions
    layout: CacheLayout
    branches: int
    guided: bool
    dtype: Any
    watched: bool = False
    switch: int | None = None
    extra_frames: int = 0
    mesh: Mesh | None = None


class Inputs(NamedTuple):
    """The traced arguments of a program.

    Attributes:
      text: prompt embeddings per branch; sequential guidance: [2, batch, T, E]
        (conditional first), batched: [1, 2 batch, T, E], none: [1, batch, T, E].
      noise: initial latents, [batch, F, C, H, W].
      key: for schedulers that add noise.
      guidance_scale: the guidance scale of each step, [steps].
      policy_state: leaves with a leading branch axis.
      image_latents: extra input channels of I2V models, or None.
      ofs: extra scalar of CogVideoX1.5 I2V, or None.
      scheduler_state: from `scheduler.init`.
      timesteps: [steps].
      image_embeds: image tokens of Wan2.1 I2V, or None.
      first_frames: clean latents of the first frames (Wan2.2 TI2V), or None.
      mask, pooled: those of the prompts, with the leading axes of `text`, or None.
      embedded_guidance: scale that the network reads, or None.
      step_noise: for schedulers that add noise, instead of `key`, or None.
      watcher: token of what is called after each step, or None.
    """

    text: Float[Array, "branches rows T E"]
    noise: Float[Array, "batch F C H W"]
    key: Array
    guidance_scale: Float[Array, "steps"]
    policy_state: PolicyState
    image_latents: Float[Array, "batch F C2 H W"] | None
    ofs: Float[Array, ""] | None
    scheduler_state: Any
    timesteps: Int[Array, "steps"] | Float[Array, "steps"]
    image_embeds: Float[Array, "batch I E2"] | None = None
    first_frames: Float[Array, "batch F0 C H W"] | None = None
    mask: Bool[Array, "branches rows T"] | None = None
    pooled: Float[Array, "branches rows P"] | None = None
    embedded_guidance: Float[Array, ""] | None = None
    step_noise: Float[Array, "steps batch F C H W"] | None = None
    watcher: Int[Array, ""] | None = None


__all__ = ["Inputs", "Program"]
