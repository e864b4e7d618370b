"""The runs that calibration measures: prompts sampled one by one under a policy."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sixbit_jax.policies import Policy
from sixbit_jax.sampling.api import prepare, run_jitted
from sixbit_jax.sampling.options import Conditions, Execution, Guidance, Prompt
from sixbit_jax.sampling.pair import switch_step
from sixbit_jax.sampling.rows import conditions_of, prompt_fields_of
from sixbit_jax.sampling.schedulers.base import Scheduler
from sixbit_jax.sampling.trace import Trace

_SEEDS = 2**64


class Sampled(NamedTuple):
    """What was sampled.

    Attributes:
      latents: float32 [prompts, F, C, H, W].
      traces: one per prompt, NumPy arrays.
    """

    latents: Float[np.ndarray, "prompts F C H W"]
    traces: tuple[Trace, ...]


@dataclass(frozen=True, eq=False)
class CalibrationRuns:
    """What is sampled while a policy is fitted.

    Attributes:
      model: with stored weights; of a pair, the network for high noise.
      scheduler: the scheduler of the runs.
      embeds: prompt embeddings, each a run with a plan and a seed of its own.
      negative: embeddings of the negative prompt; None without guidance.
      latent_shape: (F, C, H, W).
      num_steps: denoising steps.
      guidance: classifier-free guidance.
      conditions: what the network takes besides, a row per prompt; of a pair, the
        network for low noise.
      execution: how the program computes.
      seed: the seed of the first prompt.
      as_given: see `Prompt`.
      prompt_fields: masks and pooled embeddings, see `prompt_fields_of`.
    """

    model: Any
    scheduler: Scheduler
    embeds: Float[Array | np.ndarray, "prompts T E"]
    negative: Float[Array | np.ndarray, "T E"] | None
    latent_shape: tuple[int, int, int, int]
    num_steps: int
    guidance: Guidance = field(default_factory=Guidance)
    conditions: Conditions = field(default_factory=Conditions)
    execution: Execution = field(default_factory=Execution)
    seed: int = 0
    as_given: bool = False
    prompt_fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of prompts."""
        return len(self.embeds)

    @property
    def starts(self) -> tuple[int, ...]:
        """Where the second network of a pair takes over, see `Recording`."""
        low = self.conditions.low_noise
        if low is None:
            return ()
        return (switch_step(self.scheduler, self.num_steps, low.boundary),)

    def sample(
        self,
        policy: Policy,
        count: int | None = None,
        *,
        record_errors: bool = False,
    ) -> Sampled:
        """Samples the first prompts under a policy.

        Args:
          policy: who chooses routes and skips.
          count: number of prompts; None takes all.
          record_errors: measure the NVFP4 error of every site.

        Raises:
          ValueError: for inputs that do not fit; lists all of them.
        """
        negative = None if self.negative is None else jnp.asarray(self.negative)[None]
        latents, traces = [], []
        for number, embeds in enumerate(self.embeds[:count]):
            prepared = prepare(
                self.model,
                self.scheduler,
                Prompt(
                    jnp.asarray(embeds)[None],
                    negative,
                    as_given=self.as_given,
                    **prompt_fields_of(self.prompt_fields, number),
                ),
                latent_shape=self.latent_shape,
                num_steps=self.num_steps,
                guidance=self.guidance,
                conditions=conditions_of(self.conditions, number),
                seed=(self.seed + number) % _SEEDS,
                policy=policy,
                execution=self.execution,
                record_errors=record_errors,
            )
            result = run_jitted(*prepared)
            latents.append(np.asarray(result.latents[0]))
            traces.append(jax.tree.map(np.asarray, result.trace))
        return Sampled(np.stack(latents), tuple(traces))

    def notes(self) -> dict[str, Any]:
        """What a policy file says about the runs it was made from."""
        return {
            "recorded_runs": self.count,
            "steps": self.num_steps,
            "guidance": self.guidance.scale,
            "cache_format": self.execution.cache_format,
            "attention": self.execution.attention,
        }

    def with_execution(self, **changes: Any) -> "CalibrationRuns":
        """The same runs, computed otherwise (fields of `Execution`)."""
        return replace(self, execution=replace(self.execution, **changes))


__all__ = ["CalibrationRuns", "Sampled"]
