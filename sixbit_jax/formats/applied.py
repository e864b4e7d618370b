"""Weights that say themselves how a linear is computed."""

import abc
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


class AppliedWeight(abc.ABC):
    """A weight `[N, K]` that computes x W^T in its own way.

    `Linear` and the sites multiply plain and packed matrices. In the place of the
    matrix this one takes the activation instead: corrections, activation fake
    quantization and observers enter any network without its knowing.
    """

    @abc.abstractmethod
    def apply(self, x: Float[Array, "*batch K"]) -> Float[Array, "*batch N"]:
        """The product without bias, in the dtype of x."""


def low_rank_update(
    x: Float[Array, "*batch K"],
    down: Float[Array, "r K"],
    up: Float[Array, "N r"],
    factors: Float[Array, "G"] | None = None,
    *,
    text_rows: int = 0,
) -> Float[Array, "*batch N"]:
    """M (x A^T) B^T in float32, M one factor for each frame of rows.

    Args:
      x: activation, `[..., tokens, K]`.
      down, up: A and B.
      factors: of the text rows (where there are any), then of each frame; one factor
        is for all rows, None is 1.
      text_rows: rows before the first frame.

    Raises:
      ValueError: the rows after the text do not divide into frames.
    """
    inner = jnp.einsum(
        "...k,rk->...r", x, down.astype(x.dtype), preferred_element_type=jnp.float32
    )
    if factors is not None:
        inner = inner * token_factors(factors, x.shape, text_rows)
    return jnp.einsum("...r,nr->...n", inner, up.astype(jnp.float32))


def token_factors(
    factors: Float[Array, "G"], shape: tuple[int, ...], text_rows: int
) -> Float[Array, "*tokens 1"]:
    """One factor for each row of an activation from one per group of rows.

    Raises:
      ValueError: the rows after the text do not divide into frames.
    """
    if factors.shape[-1] == 1:
        return factors
    frames = factors.shape[-1] - bool(text_rows)
    rows = shape[-2] - text_rows if len(shape) > 1 else -1
    if rows < frames or rows % frames:
        raise ValueError(
            f"frame factors: expected {text_rows} text rows and {frames} frames of "
            f"equal size, found an activation of shape {tuple(shape)}"
        )
    video = jnp.repeat(factors[-frames:], rows // frames)
    text = jnp.repeat(factors[:1], text_rows)
    return jnp.concatenate([text, video])[:, None]


def dense(weight: Any, dtype: Any) -> Float[Array, "*batch N K"]:
    """A plain, packed or tunable weight as a matrix of `dtype`."""
    if hasattr(weight, "dequantize"):
        return weight.dequantize(dtype)
    return weight.astype(dtype)


__all__ = ["AppliedWeight", "dense", "low_rank_update", "token_factors"]
