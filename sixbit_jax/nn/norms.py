"""Layer normalization and its modulation by the timestep embedding."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int


def layer_norm(
    x: Float[Array, "*batch D"],
    weight: Float[Array, "D"] | None = None,
    bias: Float[Array, "D"] | None = None,
    *,
    eps: float,
) -> Float[Array, "*batch D"]:
    """Layer normalization over the last axis, computed and returned in float32.

    Args:
      x: activations of any float dtype.
      weight: scale per channel, or None.
      bias: offset per channel, or None.
      eps: added to the variance.

    Returns:
      The normalized activations, float32.
    """
    x = x.astype(jnp.float32)
    centered = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centered).mean(-1, keepdims=True)
    y = centered * jax.lax.rsqrt(variance + eps)
    if weight is not None:
        y = y * weight.astype(jnp.float32)
    if bias is not None:
        y = y + bias.astype(jnp.float32)
    return y


class LayerNorm(nnx.Module):
    """Layer normalization with an optional affine map (PyTorch `nn.LayerNorm`)."""

    def __init__(self, dim: int, *, eps: float, affine: bool = True, dtype=jnp.float32):
        self.eps = eps
        self.weight = nnx.Param(jnp.ones((dim,), dtype)) if affine else None
        self.bias = nnx.Param(jnp.zeros((dim,), dtype)) if affine else None

    def affine(self) -> tuple[Array | None, Array | None]:
        """The scale and offset arrays, or None where there are none."""
        weight = None if self.weight is None else self.weight[...]
        bias = None if self.bias is None else self.bias[...]
        return weight, bias

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalizes x; the result has the dtype of x."""
        return layer_norm(x, *self.affine(), eps=self.eps).astype(x.dtype)


def per_row(
    video: Float[Array, "batch D"],
    text: Float[Array, "batch D"],
    num_text: int,
    num_tokens: int,
) -> Float[Array, "batch tokens D"]:
    """Picks the text or the video value for each token (text tokens come first)."""
    is_text: Int[Array, "tokens 1"] = (jnp.arange(num_tokens) < num_text)[:, None]
    return jnp.where(is_text, text[:, None, :], video[:, None, :])
