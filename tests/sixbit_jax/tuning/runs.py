"""A tiny teacher, its trajectories, and a student of two lines, for several tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sixbit_jax.demo.model import demo_scheduler
from sixbit_jax.tuning.losses import mean_squared_error
from sixbit_jax.tuning.method import (
    LossResult,
    Method,
    Start,
    weights_of,
    with_weights,
)
from sixbit_jax.tuning.trajectories import record_trajectories
from tests.sixbit_jax.models.small import small_model

LATENTS = (3, 4, 8, 8)
TEXT_ROWS = 6
NAME = "transformer_blocks.ff.up.weight"


@functools.cache
def teacher():
    return small_model(num_layers=2)


def prompts(count):
    rng = np.random.default_rng(3)
    return rng.standard_normal((count, TEXT_ROWS, 32), np.float32)


@functools.cache
def trajectories():
    return record_trajectories(
        teacher(),
        demo_scheduler(),
        prompts(3),
        prompts(4)[3],
        latent_shape=LATENTS,
        num_steps=4,
        guidance_scale=2.0,
        batch=2,
    )


def shifted_start() -> Start:
    """The teacher with one weight halved; its scale can be learned again."""
    params = nnx.state(teacher())
    trainable = {"scale": {"s": jnp.full((2,), 0.5)}, "other": jnp.zeros((2,))}
    return Start(trainable, params, {"count": jnp.zeros((), jnp.int32)})


def shifted_params(trainable, frozen):
    weight = weights_of(frozen, (NAME,))[NAME]
    factor = trainable["scale"]["s"] + trainable["other"]
    return with_weights(frozen, {NAME: weight * factor[:, None, None]})


def counting_loss(extra, student, teacher, batch):
    error = mean_squared_error(student.prediction, teacher.prediction)
    seen = extra["count"] + batch.step.shape[0]
    return LossResult(error, {"count": seen}, {"error": error})


SHIFTED = Method(shifted_params, counting_loss)


def equal(left, right) -> bool:
    """Whether two pytrees hold the same bits."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
