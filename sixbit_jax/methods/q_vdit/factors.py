"""M of the Token-aware Quantization Estimator: one factor per frame, from data."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sixbit_jax.methods.q_vdit.method import QVDiTOptions
from sixbit_jax.nn.fake_quantize import fake_quantize_tokens, levels_of
from sixbit_jax.tuning.observe import observe
from sixbit_jax.tuning.trajectories import Batch


def frame_factors(
    model: Any,
    batches: Iterable[Batch],
    options: QVDiTOptions,
    *,
    frames: int,
    text_rows: int = 0,
    dtype: Any = jnp.float32,
) -> dict[str, Float[Array, "L G"]]:
    """First values of M for every weight.

    softmax_i(1 - cos(x_i, x_q,i)) / (sum|x_i| / sum|x|), i over the frames, x_i the
    activations of frame i and x_q,i the quantized ones, summed over the batches. The
    factor of text rows is 1 [ours: the paper's network has none].

    Args:
      model: the network in full precision.
      batches: calibration inputs.
      options: activation bits.
      frames: frames of tokens.
      text_rows: text tokens before them.
      dtype: compute dtype.
    """
    found = observe(
        model,
        batches,
        partial(_sums, options, frames, text_rows),
        dtype=dtype,
    )
    return {name: factors_of(sums, text_rows) for name, sums in found.items()}


def _sums(
    options: QVDiTOptions, frames: int, text_rows: int, name: str, x: Array
) -> Float[Array, "4 frames"]:
    """<x, x_q>, <x, x>, <x_q, x_q> and sum|x| of each frame."""
    rounded = fake_quantize_tokens(x, jnp.float32(levels_of(options.bits_of(name)[1])))
    video = [
        part[:, text_rows:].astype(jnp.float32).reshape(len(part), frames, -1)
        for part in (x, rounded)
    ]
    x, rounded = video
    products = [x * rounded, x * x, rounded * rounded, jnp.abs(x)]
    return jnp.stack([product.sum((0, 2)) for product in products])


def factors_of(
    sums: Float[Array, "*L 4 frames"], text_rows: int
) -> Float[Array, "*L G"]:
    """M from the sums over the calibration inputs."""
    dot, square, rounded, magnitude = jnp.moveaxis(sums, -2, 0)
    cosine = dot / jnp.sqrt(jnp.maximum(square * rounded, 1e-30))
    share = magnitude / jnp.maximum(magnitude.sum(-1, keepdims=True), 1e-30)
    factors = jax.nn.softmax(1.0 - cosine, axis=-1) / jnp.maximum(share, 1e-6)
    if not text_rows:
        return factors
    return jnp.concatenate([jnp.ones((*factors.shape[:-1], 1)), factors], -1)


__all__ = ["factors_of", "frame_factors"]
