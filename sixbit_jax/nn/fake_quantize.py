"""Uniform quantization as a rounding of values, with gradients through the rounding.

What an integer product would compute, in floating point: for tuning, and for widths
that no kernel multiplies. The number of levels, 2^bits - 1, is an array, so that
layers of different widths share one program.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def levels_of(bits: int) -> int:
    """2^bits - 1, the highest code.

    Raises:
      ValueError: bits outside 2 to 8.
    """
    whole = isinstance(bits, int) and not isinstance(bits, bool)
    if not whole or not 2 <= bits <= 8:
        raise ValueError(f"bits: expected a whole number from 2 to 8, found {bits!r}")
    return 2**bits - 1


@jax.custom_jvp
def round_straight_through(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """round(x) whose derivative is 1."""
    return jnp.round(x)


@round_straight_through.defjvp
def _round_jvp(primals, tangents):
    return jnp.round(primals[0]), tangents[0]


def fake_quantize_rows(
    w: Float[Array, "*batch N K"],
    scale: Float[Array, "*batch N"],
    zero_point: Float[Array, "*batch N"],
    levels: Float[Array, "*batch"],
) -> Float[Array, "*batch N K"]:
    """s (clip(round(w / s), -z, levels - z)), per row, straight-through.

    The derivative with respect to s is `round(w/s) - w/s` inside the range and the
    code at its ends; with respect to w it is 1 inside and 0 outside.

    Args:
      w: values; they and the result are float32.
      scale: s, the step size of each row.
      zero_point: z, whole numbers.
      levels: highest code, 2^bits - 1, of each matrix.
    """
    scale, zero = scale[..., None], zero_point[..., None]
    top = jnp.asarray(levels, jnp.float32)[..., None, None] - zero
    ratio = w.astype(jnp.float32) / scale
    return jnp.clip(round_straight_through(ratio), -zero, top) * scale


def fake_quantize_tokens(
    x: Float[Array, "*batch K"], levels: Float[Array, ""]
) -> Float[Array, "*batch K"]:
    """Dynamic asymmetric quantization of each token over its own range, 0 inside it.

    Args:
      x: activation.
      levels: highest code, 2^bits - 1.

    Returns:
      The rounded values, in the dtype of x.
    """
    values = x.astype(jnp.float32)
    low = jnp.minimum(values.min(-1, keepdims=True), 0.0)
    high = jnp.maximum(values.max(-1, keepdims=True), 0.0)
    scale = (high - low) / levels
    scale = jnp.where(scale == 0, 1.0, scale)
    zero = jnp.round(-low / scale)
    codes = jnp.clip(round_straight_through(values / scale) + zero, 0.0, levels)
    return ((codes - zero) * scale).astype(x.dtype)


__all__ = [
    "fake_quantize_rows",
    "fake_quantize_tokens",
    "levels_of",
    "round_straight_through",
]
