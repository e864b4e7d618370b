"""MTRD of MPQ-DMv2 (arXiv 2507.04290): relations to features of other steps.

Memory-based Temporal Relation Distillation; a reconstruction from the paper's abstract
and framework figure. A queue for each denoising step holds the teacher's features of
recent examples. Teacher and student are compared by how they relate to the same draw
from all queues,

    p = softmax(f . Z^T / temperature),    L = KL(p_teacher || p_student)

with every feature of length one. The gradient goes to the student's features (the code
of MPQ-DM, v1, detaches both, and its term has no gradient).

Our reading: a feature is the mean of the last block's residual stream over the tokens
of one frame; text tokens are left out. Queue length, draws, temperature and weight.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@dataclass(frozen=True)
class MTRDOptions:
    """Sizes and numbers of the memory.

    Attributes:
      capacity: features kept of each step.
      draws: features drawn of all steps in each iteration.
      length: of the `capacity` places, how many are used; None: all. At least the
        frames of a video: an example must not write a place twice.
      temperature: the temperature of the softmax.
      weight: lambda, of the divergence beside the mean squared error.
      seed: the seed of the draws.
    """

    capacity: int = 64
    draws: int = 256
    length: int | None = None
    temperature: float = 0.1
    weight: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{name}: expected at least 1, found {getattr(self, name)}"
            for name in ("capacity", "draws")
            if getattr(self, name) < 1
        ]
        length = self.capacity if self.length is None else self.length
        if not 1 <= length <= self.capacity:
            problems.append(
                f"length: expected 1 to the capacity {self.capacity}, found {length}"
            )
        if not self.temperature > 0:
            problems.append(f"temperature: expected > 0, found {self.temperature}")
        if not self.weight >= 0:
            problems.append(f"weight: expected >= 0, found {self.weight}")
        if problems:
            raise ValueError("MTRD:\n  " + "\n  ".join(problems))


class Memory(NamedTuple):
    """The queues; a pytree of arrays, part of the tuning state.

    Numbers are arrays too, so that runs that differ in them share one program.

    Attributes:
      features: [steps, capacity, D], length one.
      count: features ever put into the queue of each step.
      length: places used of each queue.
      temperature, weight: see `MTRDOptions`.
      key: the raw data of the PRNG key of the next draw.
    """

    features: Float[Array, "steps capacity D"]
    count: Int[Array, "steps"]
    length: Int[Array, ""]
    temperature: Float[Array, ""]
    weight: Float[Array, ""]
    key: Array


class Contrast(NamedTuple):
    """A draw from all queues.

    Attributes:
      features: [draws, D].
      valid: False where the place was empty; such an entry is left out.
    """

    features: Float[Array, "draws D"]
    valid: Bool[Array, "draws"]


def empty_memory(num_steps: int, width: int, options: MTRDOptions) -> Memory:
    """Queues without features.

    Args:
      num_steps: denoising steps of the trajectories.
      width: D, of the residual stream.
      options: sizes and numbers.
    """
    length = options.capacity if options.length is None else options.length
    return Memory(
        jnp.zeros((num_steps, options.capacity, width), jnp.float32),
        jnp.zeros((num_steps,), jnp.int32),
        jnp.int32(length),
        jnp.float32(options.temperature),
        jnp.float32(options.weight),
        jax.random.key_data(jax.random.key(options.seed)),
    )


def frame_features(
    stream: Float[Array, "batch tokens D"], *, frames: int, text_rows: int = 0
) -> Float[Array, "batch frames D"]:
    """Mean over the tokens of each frame, of length one.

    Args:
      stream: residual stream after the last block.
      frames: frames of tokens.
      text_rows: text tokens before them.

    Raises:
      ValueError: the tokens do not divide into frames.
    """
    batch, tokens, width = stream.shape
    rows = tokens - text_rows
    if rows < frames or rows % frames:
        raise ValueError(
            f"features: expected {text_rows} text tokens and {frames} frames of equal "
            f"size, found a stream of shape {tuple(stream.shape)}"
        )
    video = stream[:, text_rows:].astype(jnp.float32)
    means = video.reshape(batch, frames, rows // frames, width).mean(2)
    # The small number keeps the gradient of an empty frame finite.
    return means / jnp.sqrt(jnp.square(means).sum(-1, keepdims=True) + 1e-12)


def draw(memory: Memory, draws: int) -> tuple[Memory, Contrast]:
    """Draws a contrast set, uniformly over steps and places that are filled.

    Steps are drawn from those with features; until there are any, nothing is valid.
    """
    key, step_key, place_key = jax.random.split(jax.random.wrap_key_data(memory.key), 3)
    filled = jnp.minimum(memory.count, memory.length)
    seen = filled > 0
    logits = jnp.where(seen | ~seen.any(), 0.0, -jnp.inf)
    step = jax.random.categorical(step_key, logits, shape=(draws,))
    available = filled[step]
    uniform = jax.random.uniform(place_key, (draws,))
    place = jnp.minimum(
        (uniform * available).astype(jnp.int32), jnp.maximum(available - 1, 0)
    )
    found = Contrast(memory.features[step, place], available > 0)
    return memory._replace(key=jax.random.key_data(key)), found


def remember(
    memory: Memory, features: Float[Array, "batch frames D"], step: Int[Array, "batch"]
) -> Memory:
    """Puts features into the queues of their steps, over the oldest ones.

    Args:
      memory: the queues.
      features: of the teacher, one row of frames per example; no gradient is kept.
      step: denoising step of each example.

    Raises:
      ValueError: more frames than places.
    """
    if features.shape[1] > memory.features.shape[1]:
        raise ValueError(
            f"memory: expected places for the {features.shape[1]} frames of an "
            f"example, found a capacity of {memory.features.shape[1]}"
        )
    features = jax.lax.stop_gradient(features)

    def push(memory: Memory, example: tuple[Array, Array]) -> tuple[Memory, None]:
        rows, number = example
        places = (memory.count[number] + jnp.arange(len(rows))) % memory.length
        return (
            memory._replace(
                features=memory.features.at[number, places].set(rows),
                count=memory.count.at[number].add(len(rows)),
            ),
            None,
        )

    # One example after the other: two of one step must not share a place.
    memory, _ = jax.lax.scan(push, memory, (features, step))
    return memory


def relations(
    features: Float[Array, "*any D"],
    contrast: Contrast,
    temperature: Float[Array, ""],
) -> Float[Array, "*any draws"]:
    """log softmax(f . Z^T / temperature) over the valid entries of the draw."""
    similar = jnp.einsum(
        "...d,nd->...n", features, contrast.features, precision="highest"
    )
    logits = jnp.where(contrast.valid, similar / temperature, -1e30)
    return jax.nn.log_softmax(logits, -1)


def relation_divergence(
    student: Float[Array, "batch frames D"],
    teacher: Float[Array, "batch frames D"],
    contrast: Contrast,
    temperature: Float[Array, ""],
) -> Float[Array, ""]:
    """KL(p_teacher || p_student), mean over the features; 0 without valid entries.

    The teacher and the draw get no gradient, the student does.
    """
    contrast = jax.lax.stop_gradient(contrast)
    truth = relations(jax.lax.stop_gradient(teacher), contrast, temperature)
    found = relations(student, contrast, temperature)
    terms = jnp.exp(truth) * (truth - found)
    divergence = jnp.where(contrast.valid, terms, 0.0).sum(-1).mean()
    return jnp.where(contrast.valid.any(), divergence, 0.0)


__all__ = [
    "Contrast",
    "MTRDOptions",
    "Memory",
    "draw",
    "empty_memory",
    "frame_features",
    "relation_divergence",
    "relations",
    "remember",
]
