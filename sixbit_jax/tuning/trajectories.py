"""The teacher's own trajectories: what it read and what it predicted, step by step."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from sixbit_jax.checkpoint.directory import new_directory
from sixbit_jax.sampling.guidance import guide
from sixbit_jax.sampling.schedulers import Scheduler
from sixbit_jax.tuning.forward import forward

_ARRAYS = ("latents", "predictions", "timesteps", "text")


class Batch(NamedTuple):
    """Inputs of the network and the teacher's answer; one row per example.

    Attributes:
      latents: what the teacher read.
      text: its prompt embeddings (or the negative prompt's).
      timestep: the model's timestep.
      prediction: the teacher's output.
      step: index of the denoising step, 0 first.
    """

    latents: Float[Array | np.ndarray, "batch F C H W"]
    text: Float[Array | np.ndarray, "batch T E"]
    timestep: Float[Array | np.ndarray, "batch"]
    prediction: Float[Array | np.ndarray, "batch F C H W"]
    step: Int[Array | np.ndarray, "batch"]


@dataclass(frozen=True)
class Trajectories:
    """Sampling runs of the teacher, on the host (or on disk, memory-mapped).

    Attributes:
      latents: before each step, float32 [steps, prompts, F, C, H, W].
      predictions: of each guidance branch, [steps, branches, prompts, F, C, H, W].
      timesteps: [steps].
      text: [branches, prompts, T, E].
    """

    latents: np.ndarray
    predictions: np.ndarray
    timesteps: np.ndarray
    text: np.ndarray

    def __post_init__(self) -> None:
        steps, prompts, *video = self.latents.shape
        branches = self.text.shape[0]
        expected = {
            "predictions": (steps, branches, prompts, *video),
            "timesteps": (steps,),
            "text": (branches, prompts, *self.text.shape[2:]),
        }
        problems = [
            f"{name}: expected {shape}, found {getattr(self, name).shape}"
            for name, shape in expected.items()
            if getattr(self, name).shape != shape
        ]
        if problems:
            raise ValueError("trajectories:\n  " + "\n  ".join(problems))

    def __len__(self) -> int:
        steps, branches, prompts = self.predictions.shape[:3]
        return steps * branches * prompts

    def batch(self, indices: Int[np.ndarray, "*shape"]) -> Batch:
        """Examples by number, with the shape of `indices` in front."""
        step, branch, prompt = np.unravel_index(indices, self.predictions.shape[:3])
        return Batch(
            np.asarray(self.latents[step, prompt]),
            np.asarray(self.text[branch, prompt]),
            np.asarray(self.timesteps[step], np.float32),
            np.asarray(self.predictions[step, branch, prompt]),
            np.asarray(step, np.int32),
        )

    def save(self, path: Path, note: dict[str, Any]) -> None:
        """Writes a directory of `.npy` files; it appears when complete.

        Args:
          path: a new directory.
          note: what made them; `load` compares it.
        """
        size = sum(getattr(self, name).nbytes for name in _ARRAYS)
        with new_directory(path, expected_bytes=size) as partial_path:
            for name in _ARRAYS:
                np.save(partial_path / f"{name}.npy", getattr(self, name))
            text = json.dumps(note, indent=1, sort_keys=True)
            (partial_path / "trajectories.json").write_text(text + "\n")

    @classmethod
    def load(cls, path: Path, note: dict[str, Any] | None = None) -> Self:
        """Memory-maps what `save` wrote.

        Raises:
          ValueError: it was made otherwise than `note` says.
        """
        found = json.loads((path / "trajectories.json").read_text())
        if note is not None and found != json.loads(json.dumps(note)):
            differing = {
                key: (note.get(key), found.get(key))
                for key in {*note, *found}
                if json.loads(json.dumps(note.get(key))) != found.get(key)
            }
            raise ValueError(
                f"{path}: recorded otherwise; (expected, found): {differing}"
            )
        return cls(*(np.load(path / f"{n}.npy", mmap_mode="r") for n in _ARRAYS))


def record_trajectories(
    model: Any,
    scheduler: Scheduler,
    text: Float[np.ndarray, "prompts T E"],
    negative: Float[np.ndarray, "T E"] | None,
    *,
    latent_shape: tuple[int, int, int, int],
    num_steps: int = 50,
    guidance_scale: float = 6.0,
    seed: int = 0,
    batch: int = 8,
    dtype: Any = jnp.float32,
    as_given: bool = False,
    after_batch: Any = None,
) -> Trajectories:
    """Samples every prompt with the teacher and keeps inputs and outputs of all steps.

    Args:
      model: the network in full precision.
      scheduler: its scheduler.
      text: prompt embeddings.
      negative: of the negative prompt; None (with guidance 1) records one branch.
      latent_shape: (F, C, H, W).
      num_steps, guidance_scale: of the sampling runs.
      seed: of the noise; each prompt has its own.
      batch: prompts sampled at a time.
      dtype: compute dtype of the network.
      as_given: take prompts as they are where the network's pipelines would pad them
        with zeros, see `sampling.options.Prompt`.
      after_batch: called with the number of prompts that are done.

    Raises:
      ValueError: no prompts, guidance without a negative prompt, or a prediction that
        is not finite.
    """
    if not len(text) or num_steps < 1 or batch < 1:
        raise ValueError(
            f"trajectories: expected prompts, steps and a batch, found {len(text)}, "
            f"{num_steps} and {batch}"
        )
    if (negative is None) != (guidance_scale <= 1.0):
        raise ValueError(
            "trajectories: expected a negative prompt exactly where guidance_scale is "
            f"above 1, found {'none' if negative is None else 'one'} with "
            f"{guidance_scale}"
        )
    prompts = np.asarray(text, np.float32)
    branches = [prompts]
    if negative is not None:
        null = np.asarray(negative, np.float32)
        branches.append(np.broadcast_to(null, prompts.shape))
    texts = np.stack(branches)
    if not as_given:
        spec = model.description.conditions.prompt
        texts = np.stack([np.asarray(spec.padded(branch)) for branch in texts])
    graph, params = nnx.split(model)
    timesteps = scheduler.timesteps(num_steps)
    run = jax.jit(
        partial(_run, graph, scheduler, jnp.dtype(dtype), np.asarray(timesteps)),
    )
    parts = []
    for start in range(0, len(prompts), batch):
        rows = np.arange(start, min(start + batch, len(prompts)))
        # Whole batches, so that there is one program.
        padded = np.resize(rows, batch)
        noise = np.stack(
            [
                np.random.default_rng([seed, int(row)]).standard_normal(
                    latent_shape, np.float32
                )
                for row in padded
            ]
        )
        found = run(
            params,
            scheduler.init(num_steps, noise.shape),
            texts[:, padded],
            noise,
            guidance_scale,
            jax.random.key(np.uint32(seed + start)),
        )
        latents, predictions = (np.asarray(array) for array in found)
        if not np.isfinite(predictions).all():
            raise ValueError(
                f"trajectories: a prediction for prompts {rows[0]}..{rows[-1]} is not "
                "finite; expected a trained network in a wide enough dtype"
            )
        parts.append((latents[:, : len(rows)], predictions[:, :, : len(rows)]))
        if after_batch is not None:
            after_batch(int(rows[-1]) + 1)
    latents, predictions = zip(*parts, strict=True)
    return Trajectories(
        np.concatenate(latents, 1),
        np.concatenate(predictions, 2),
        np.asarray(timesteps, np.float32),
        texts,
    )


def _run(graph, scheduler, dtype, timesteps, params, state, text, noise, scale, key):
    branches, batch = text.shape[:2]
    # Timesteps are those of the scheduler, which has its own integers.
    times = jnp.asarray(timesteps, jnp.float32)

    def step(carry, index):
        latents, state = carry
        found = forward(
            graph,
            params,
            jnp.concatenate([latents] * branches),
            text.reshape(-1, *text.shape[2:]),
            jnp.full((branches * batch,), times[index]),
            dtype=dtype,
            remat=False,
        )
        outputs = found.prediction.reshape(branches, *latents.shape)
        guided = outputs[0] if branches == 1 else guide(outputs[0], outputs[1], scale)
        drawn = None
        if scheduler.stochastic:
            drawn = jax.random.normal(jax.random.fold_in(key, index), latents.shape)
        after, state = scheduler.step(state, index, guided, latents, drawn)
        return (after, state), (latents, outputs)

    steps = jnp.arange(len(timesteps))
    _, recorded = jax.lax.scan(step, (noise, state), steps)
    return recorded


__all__ = ["Batch", "Trajectories", "record_trajectories"]
