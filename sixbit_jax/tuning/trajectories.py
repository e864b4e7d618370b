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
from sixbit_jax.sampling import checks
from sixbit_jax.sampling.guidance import guide
from sixbit_jax.sampling.noise import seed_key
from sixbit_jax.sampling.options import Prompt
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
      latent_shape: (F, C, H, W); frames that the sampler computes in front are added.
      num_steps, guidance_scale: those of the sampling runs.
      seed: the seed of the noise; each prompt has its own.
      batch: prompts sampled at a time.
      dtype: compute dtype of the network.
      as_given: take prompts as they are where the network's pipelines would pad them
        with zeros, see `sampling.options.Prompt`.
      after_batch: called with the number of prompts that are done.

    Raises:
      ValueError: inputs that do not fit the network (all are listed), or a prediction
        that is not finite.
    """
    description = model.description  # pyrefly: ignore[missing-attribute]
    check_network(model)
    problems = _problems(
        model, scheduler, text, negative, latent_shape, num_steps, guidance_scale
    )
    problems += [f"batch: expected at least 1, found {batch}"] if batch < 1 else []
    if problems:
        raise ValueError("trajectories:\n  " + "\n  ".join(problems))
    texts = _texts(text, negative)
    if not as_given:
        spec = description.conditions.prompt
        texts = np.stack([np.asarray(spec.padded(branch)) for branch in texts])
    frames, *rest = latent_shape
    shape = (frames + description.extra_frames(frames), *rest)
    graph, params = nnx.split(model)
    timesteps = scheduler.timesteps(num_steps)
    run = jax.jit(
        partial(_run, graph, scheduler, jnp.dtype(dtype), np.asarray(timesteps)),
    )
    parts = []
    for start in range(0, texts.shape[1], batch):
        rows = np.arange(start, min(start + batch, texts.shape[1]))
        # Whole batches, so that there is one program.
        padded = np.resize(rows, batch)
        noise = _noise(seed, padded, shape)
        found = run(
            params,
            scheduler.init(num_steps, noise.shape),
            texts[:, padded],
            noise,
            guidance_scale,
            seed_key((seed + start) % 2**64),
        )
        latents, predictions = (np.asarray(array) for array in found)
        _check_finite(predictions, rows)
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


def _check_finite(predictions: np.ndarray, rows: np.ndarray) -> None:
    if not np.isfinite(predictions).all():
        raise ValueError(
            f"trajectories: a prediction for prompts {rows[0]}..{rows[-1]} is not "
            "finite; expected a trained network in a wide enough dtype"
        )


def check_network(model: Any) -> None:
    """Refuses a network whose inputs trajectories do not hold.

    Raises:
      ValueError: it takes more than latents, a prompt and a timestep.
    """
    spec = model.description.conditions
    wanted = {
        "image_latents": spec.image_latent_channels,
        "image_embeds": spec.image_embeds_width,
        "a mask of the prompt": spec.prompt.masked,
        "a pooled prompt": spec.prompt.pooled_width,
        "an embedded guidance scale": spec.embedded_guidance,
    }
    needed = [name for name, value in wanted.items() if value]
    if needed:
        raise ValueError(
            f"trajectories: expected a network that takes prompts alone, found "
            f"{type(model).__name__}, which needs {', '.join(needed)}"
        )


def _problems(
    model: Any,
    scheduler: Scheduler,
    text: Any,
    negative: Any,
    latent_shape: Any,
    num_steps: Any,
    scale: Any,
) -> list[str]:
    """All that does not fit the network."""
    description, spec = model.description, model.description.conditions
    problems: list[str | None] = []
    if not len(text):
        problems.append("prompts: expected at least one, found none")
    elif (negative is None) != (scale <= 1.0):
        problems.append(
            "negative prompt: expected one exactly where guidance_scale is above 1, "
            f"found {'none' if negative is None else 'one'} with {scale}"
        )
    else:
        rows = None if negative is None else np.broadcast_to(negative, np.shape(text))
        # Lengths are the caller's: prompts are padded or taken as they are.
        prompt = Prompt(text, rows, as_given=True)  # pyrefly: ignore
        problems += checks.prompt_problems(
            spec.prompt, prompt, guided=scale > 1.0, scale=scale
        )
    problems += checks.schedule_problems(model, description, scheduler, num_steps)
    problems += checks.size_problems(description, model.config, latent_shape)
    return [problem for problem in problems if problem is not None]


def _texts(text: Any, negative: Any) -> np.ndarray:
    """[branches, prompts, T, E] of the prompts, and of the negative one."""
    prompts = np.asarray(text, np.float32)
    branches = [prompts]
    if negative is not None:
        null = np.asarray(negative, np.float32)
        branches.append(np.broadcast_to(null, prompts.shape))
    return np.stack(branches)


def _noise(seed: int, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Every prompt's own noise, by its number."""
    return np.stack(
        [
            np.random.default_rng([seed, int(row)]).standard_normal(shape, np.float32)
            for row in rows
        ]
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


__all__ = ["Batch", "Trajectories", "check_network", "record_trajectories"]
