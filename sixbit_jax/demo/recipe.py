"""The training step of the demo models: a velocity, AdamW, an average of the weights.

Batches are made inside the compiled step. Master weights, optimizer and average are
float32; the network runs in bfloat16.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from sixbit_jax.demo import data, text
from sixbit_jax.sampling.schedulers import Scheduler


@dataclass(frozen=True)
class Recipe:
    """Numbers of the training run.

    Attributes:
        batch: videos per step.
        learning_rate: after warm-up; a half cosine takes it to `final_fraction` of it.
        warmup: steps of linear warm-up.
        final_fraction: last learning rate over the highest.
        weight_decay: decoupled, on matrices only.
        betas: the betas of Adam's two moments.
        clip_norm: limit of the gradient's global L2 norm.
        average_decay: of the exponential moving average of the weights.
        caption_dropout: fraction of videos trained with the null embedding.
        high_noise_share: fraction of timesteps drawn from `high_noise_from` upwards
            in addition to the uniform ones. Position, colours and motion of these
            small videos are decided above timestep 850, where uniform draws are few.
        high_noise_from: see above.
        timestep_shift: for flow matching, in place of the two above: timesteps are
            uniform ones through sigma -> s sigma / (1 + (s - 1) sigma), as the
            schedule of the sampler is.
        seed: the seed of weights, batches and noise.
        dtype: compute dtype of the network.
    """

    batch: int = 128
    learning_rate: float = 1e-3
    warmup: int = 300
    final_fraction: float = 0.02
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    average_decay: float = 0.999
    caption_dropout: float = 0.1
    high_noise_share: float = 0.3
    high_noise_from: int = 700
    timestep_shift: float | None = None
    seed: int = 0
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        problems = []
        for name in ("batch", "learning_rate", "warmup", "clip_norm"):
            if not getattr(self, name) > 0:
                problems.append(f"{name}: expected > 0, found {getattr(self, name)}")
        for name in ("caption_dropout", "high_noise_share", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(f"{name}: expected [0, 1), found {getattr(self, name)}")
        if self.timestep_shift is not None and not self.timestep_shift > 0:
            problems.append(
                f"timestep_shift: expected > 0, found {self.timestep_shift}"
            )
        if self.dtype not in ("bfloat16", "float32"):
            problems.append(
                f"dtype: expected bfloat16 or float32, found {self.dtype!r}"
            )
        if problems:
            raise ValueError("training recipe:\n  " + "\n  ".join(problems))


class TrainState(NamedTuple):
    """Everything that one step changes; float32 but for the counters."""

    params: Any
    optimizer: optax.OptState
    average: Any
    step: Int[Array, ""]


class StepRecord(NamedTuple):
    """What one step reports."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]


class Span(NamedTuple):
    """Which part of the learning rate's schedule a run covers; traced.

    A plan of several calls divides the cosine among them; each call warms up, because
    Adam's moments start again.
    """

    first: Int[Array, ""]
    """Step that the run starts at."""
    steps: Int[Array, ""]
    """How many steps it has."""
    cosine: tuple[float, float] = (0.0, 1.0)
    """Where on the half cosine it begins and ends."""


TrainSteps = Callable[[TrainState, Span], tuple[TrainState, StepRecord]]


def init_state(model: nnx.Module, recipe: Recipe) -> tuple[nnx.GraphDef, TrainState]:
    """Split a model into its structure and the state that training starts from."""
    graph, params = nnx.split(model)
    # Copies: the step donates its state, the model keeps its arrays, and no buffer may
    # be donated twice.
    params = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
    average = jax.tree.map(jnp.copy, params)
    return graph, TrainState(
        params, _optimizer(recipe).init(params), average, jnp.zeros((), jnp.int32)
    )


def make_train_steps(
    graph: nnx.GraphDef,
    recipe: Recipe,
    scheduler: Scheduler,
    count: int,
    *,
    devices: Sequence[Any] | None = None,
) -> TrainSteps:
    """A compiled function that runs `count` steps and donates its state.

    Args:
        graph: structure of the model, from `init_state`.
        recipe: the numbers.
        scheduler: gives the forward process and the velocity to predict.
        count: steps per call, one `lax.scan`.
        devices: every batch is split over these; None takes the first one.

    Returns:
        `(state, span) -> (state, records)`; the span is traced and sets the learning
        rate, the records are `[count]`.

    Raises:
        ValueError: the batch does not divide among the devices.
    """
    devices = jax.devices()[:1] if devices is None else devices
    if recipe.batch % len(devices):
        raise ValueError(
            f"batch: expected a multiple of the {len(devices)} devices, found "
            f"{recipe.batch}"
        )
    mesh = Mesh(np.asarray(devices), ("data",))
    replicated = NamedSharding(mesh, PartitionSpec())
    examples = NamedSharding(mesh, PartitionSpec("data"))
    optimizer = _optimizer(recipe)
    base = jax.random.key(recipe.seed)
    loss_and_grad = jax.value_and_grad(
        functools.partial(diffusion_loss, graph, recipe, scheduler, examples=examples)
    )

    def one(state: TrainState, span: Span) -> tuple[TrainState, StepRecord]:
        key = jax.random.fold_in(base, state.step)
        loss, gradient = loss_and_grad(state.params, key)
        direction, optimizer_state = optimizer.update(
            gradient, state.optimizer, state.params
        )
        rate = learning_rate(recipe, state.step, span)
        params = jax.tree.map(lambda p, d: p - rate * d, state.params, direction)
        # The average forgets the first, bad weights faster (as in TensorFlow's EMA).
        decay = jnp.minimum(recipe.average_decay, (1 + state.step) / (10 + state.step))
        average = optax.incremental_update(params, state.average, 1 - decay)
        record = StepRecord(loss, _global_norm(gradient))
        return TrainState(params, optimizer_state, average, state.step + 1), record

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=replicated)
    def steps(state: TrainState, span: Span) -> tuple[TrainState, StepRecord]:
        return jax.lax.scan(lambda s, _: one(s, span), state, length=count)

    def run(state: TrainState, span: Span) -> tuple[TrainState, StepRecord]:
        return steps(jax.device_put(state, replicated), span)

    return run


def diffusion_loss(
    graph: nnx.GraphDef,
    recipe: Recipe,
    scheduler: Scheduler,
    params: nnx.State,
    key: Key[Array, ""],
    *,
    examples: NamedSharding | None = None,
) -> Float[Array, ""]:
    """Mean squared error of the predicted velocity on a batch made from `key`.

    With `examples`, the batch is split as that says; what is drawn stays the same.
    """
    keys = jax.random.split(key, 5)
    attributes = data.sample_attributes(keys[0], recipe.batch)
    videos = data.make_videos(keys[1], attributes)
    noise = jax.random.normal(keys[2], videos.shape)
    timestep = sample_timesteps(keys[3], recipe, scheduler.num_train_timesteps)
    dropped = jax.random.bernoulli(keys[4], recipe.caption_dropout, (recipe.batch,))
    batch = (attributes, videos, noise, timestep, dropped)
    if examples is not None:
        batch = jax.lax.with_sharding_constraint(batch, examples)
    attributes, videos, noise, timestep, dropped = batch

    dtype = jnp.dtype(recipe.dtype)
    model = nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype), params))
    output = model(
        scheduler.add_noise(videos, noise, timestep).astype(dtype),
        text.encode_attributes(attributes, dropped),
        timestep.astype(jnp.float32),
    )
    target = scheduler.velocity(videos, noise, timestep)
    return jnp.square(output.astype(jnp.float32) - target).mean()


def sample_timesteps(
    key: Key[Array, ""], recipe: Recipe, num_train_timesteps: int
) -> Int[Array, " batch"] | Float[Array, " batch"]:
    """Timesteps of one batch: uniform, plus a share at high noise; stratified.

    With a `timestep_shift`: uniform and then shifted, not rounded.

    Each quantile of the distribution appears once per batch, which makes the loss less
    noisy than independent draws.

    Args:
        key: random key.
        recipe: `batch` and the fields about timesteps are read.
        num_train_timesteps: timesteps are below this.

    Returns:
        `[batch]`, in random order; int32, or float32 with a shift.
    """
    k_offset, k_order = jax.random.split(key)
    order = jax.random.permutation(k_order, recipe.batch)
    u = (order + jax.random.uniform(k_offset, (recipe.batch,))) / recipe.batch
    if (shift := recipe.timestep_shift) is not None:
        return num_train_timesteps * shift * u / (1 + (shift - 1) * u)
    total, split = num_train_timesteps, recipe.high_noise_from
    below = (1 - recipe.high_noise_share) * split / total
    low = u / max(below, 1e-6) * split
    high = split + (u - below) / (1 - below) * (total - split)
    return jnp.clip(jnp.where(u < below, low, high), 0, total - 1).astype(jnp.int32)


def learning_rate(recipe: Recipe, step: Int[Array, ""], span: Span) -> Float[Array, ""]:
    """Linear warm-up times the span's part of a half cosine."""
    done = step - span.first
    warmup = jnp.minimum((done + 1) / recipe.warmup, 1.0)
    begin, end = span.cosine
    place = begin + (end - begin) * jnp.clip(done / span.steps, 0.0, 1.0)
    cosine = 0.5 + 0.5 * jnp.cos(jnp.pi * place)
    fraction = recipe.final_fraction + (1 - recipe.final_fraction) * cosine
    return recipe.learning_rate * warmup * fraction


def _global_norm(tree: nnx.State) -> Float[Array, ""]:
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)))


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW without its learning rate, which depends on the traced total of steps."""
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip_norm),
        optax.scale_by_adam(*recipe.betas),
        optax.add_decayed_weights(
            recipe.weight_decay,
            mask=lambda params: jax.tree.map(lambda x: x.ndim > 2, params),
        ),
    )
