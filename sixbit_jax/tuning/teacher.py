"""How a teacher's trajectories are recorded into the directory of a run."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from sixbit_jax.sampling.schedulers.base import Scheduler
from sixbit_jax.tuning.session import cached_trajectories
from sixbit_jax.tuning.trajectories import Trajectories, record_trajectories

_BATCH = 4


@dataclass(frozen=True)
class TeacherRuns:
    """The teacher's sampling runs.

    Attributes:
      scheduler: the scheduler of the runs.
      scheduler_name: what the directory says of it.
      latent_shape: (F, C, H, W).
      num_steps, guidance_scale: those of the runs.
      seed: the seed of the noise; each prompt has its own.
      dtype: compute dtype of the network.
      as_given: see `sampling.options.Prompt`.
    """

    scheduler: Scheduler
    scheduler_name: str
    latent_shape: tuple[int, int, int, int]
    num_steps: int
    guidance_scale: float
    seed: int = 0
    dtype: str = "float32"
    as_given: bool = False

    def note(self, embeds: Float[Array | np.ndarray, "prompts T E"]) -> dict[str, Any]:
        """What distinguishes trajectories; a directory of others is refused."""
        digest = hashlib.sha256(np.ascontiguousarray(embeds).tobytes())
        note = {
            "latent_shape": list(self.latent_shape),
            "steps": self.num_steps,
            "guidance": self.guidance_scale,
            "seed": self.seed,
            "dtype": self.dtype,
            "scheduler": self.scheduler_name,
            "prompts": len(embeds),
            "prompts_sha256": digest.hexdigest(),
        }
        # Directories of earlier versions do not say it where it changes nothing.
        return note | ({"as_given": True} if self.as_given else {})

    def record(
        self,
        folder: Path,
        model: Any,
        embeds: Float[Array | np.ndarray, "prompts T E"],
        negative: Float[Array | np.ndarray, "T E"] | None,
        *,
        say: Callable[[str], None] = lambda message: None,
        after_batch: Callable[[int], None] | None = None,
    ) -> Trajectories:
        """The trajectories of a directory, recorded first if there are none.

        Args:
          folder: its subdirectory `trajectories` holds them.
          model: the network in full precision.
          embeds: prompt embeddings.
          negative: embeddings of the negative prompt; not read without guidance.
          say: told what is going on.
          after_batch: called with the number of prompts that are done.

        Raises:
          ValueError: inputs that do not fit the network, or a directory whose
            trajectories were recorded otherwise.
        """

        def make() -> Trajectories:
            say(f"recording {len(embeds)} runs of {self.num_steps} steps")
            return record_trajectories(
                model,
                self.scheduler,
                np.asarray(embeds),
                None
                if negative is None or self.guidance_scale <= 1.0
                else np.asarray(negative),
                latent_shape=self.latent_shape,
                num_steps=self.num_steps,
                guidance_scale=self.guidance_scale,
                seed=self.seed,
                batch=min(_BATCH, len(embeds)),
                dtype=self.dtype,
                as_given=self.as_given,
                after_batch=after_batch,
            )

        return cached_trajectories(folder, self.note(embeds), make)


__all__ = ["TeacherRuns"]
