"""Distillation losses, all means over the batch in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def mean_squared_error(
    student: Float[Array, "*any"], teacher: Float[Array, "*any"]
) -> Float[Array, ""]:
    """mean (student - teacher)^2; the teacher gets no gradient."""
    teacher = jax.lax.stop_gradient(teacher).astype(jnp.float32)
    return jnp.square(student.astype(jnp.float32) - teacher).mean()


def frame_relations(video: Float[Array, "batch F C H W"]) -> Float[Array, "batch F F"]:
    """T_ij = cos(S_i, S_j), S_i all values of frame i (Q-VDiT, section 3.3).

    Frames are the second axis, as in every array of this library. Arrays in PyTorch's
    [B, C, T, H, W] must be transposed first: reshaping them mixes channels and frames.

    Raises:
      ValueError: another number of axes.
    """
    if video.ndim != 5:
        raise ValueError(
            f"frame relations: expected [batch, F, C, H, W], found {video.shape}"
        )
    frames = video.astype(jnp.float32).reshape(*video.shape[:2], -1)
    # The small number keeps the gradient of an empty frame finite.
    norm = jnp.sqrt(jnp.square(frames).sum(-1, keepdims=True) + 1e-12)
    frames = frames / norm
    return jnp.einsum("bif,bjf->bij", frames, frames, precision="highest")


def temporal_maintenance(
    student: Float[Array, "batch F C H W"], teacher: Float[Array, "batch F C H W"]
) -> Float[Array, ""]:
    """Temporal Maintenance Distillation: sum_i KL(D_i^teacher || D_i^student).

    D_i = softmax_j cos(S_i, S_j) at temperature 1: how strongly frame i is related to
    every frame (arXiv 2505.22167, section 3.3). Mean over the batch; the teacher gets
    no gradient.
    """
    teacher = jax.lax.stop_gradient(teacher)
    truth = jax.nn.log_softmax(frame_relations(teacher), axis=-1)
    found = jax.nn.log_softmax(frame_relations(student), axis=-1)
    divergence = (jnp.exp(truth) * (truth - found)).sum(-1)
    return divergence.sum(-1).mean()


__all__ = ["frame_relations", "mean_squared_error", "temporal_maintenance"]
