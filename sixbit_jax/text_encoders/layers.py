"""What the encoders share: embedding lookup, norms, attention, stacks of blocks."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sixbit_jax.formats import NVFP4Array, StoredWeight, UniformArray, rotate


class Embedding(nnx.Module):
    """A table of rows; the parameter is called `weight`, as in PyTorch."""

    def __init__(self, rows: int, dim: int, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (rows, dim), dtype))

    def __call__(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """The rows of `ids`, float32; of a stored table only they are dequantized."""
        weight = self.weight.get_value()
        if not isinstance(weight, StoredWeight):
            return weight[ids].astype(jnp.float32)
        flat = ids.reshape(-1)
        if isinstance(weight, NVFP4Array | UniformArray):
            # Every array with an axis has the rows in front.
            weight = jax.tree.map(
                lambda part: part[flat] if part.ndim else part, weight
            )
            flat = slice(None)
        # The Hadamard is its own inverse: rows leave the rotation they are stored in.
        y = rotate(weight.dequantize(jnp.float32), weight.rotation)[flat]
        return y.reshape(*ids.shape, y.shape[-1])


class RMSNorm(nnx.Module):
    """x / rms(x) * weight, computed and returned in float32."""

    def __init__(self, dim: int, *, eps: float, dtype=jnp.float32):
        self.eps = eps
        self.weight = nnx.Param(jnp.ones((dim,), dtype))

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalizes x of any float dtype."""
        x = x.astype(jnp.float32)
        variance = jnp.square(x).mean(-1, keepdims=True)
        return x * jax.lax.rsqrt(variance + self.eps) * self.weight[...]


def split_heads(
    x: Float[Array, "batch T D"], heads: int
) -> Float[Array, "batch T heads d"]:
    """The last axis as heads."""
    return x.reshape(*x.shape[:-1], heads, -1)


def visible_keys(
    mask: Bool[Array, "batch T"] | None, length: int, *, causal: bool
) -> Bool[Array, "batch 1 T T"] | None:
    """Which key each query may read; None: every query all of them.

    Args:
      mask: true for tokens, false for padding; None: no padding.
      length: number of tokens, T.
      causal: whether a query reads only itself and what stands before it.
    """
    visible = None if mask is None else mask.astype(bool)[:, None, None, :]
    if causal:
        before = jnp.tril(jnp.ones((length, length), bool))[None, None]
        visible = before if visible is None else visible & before
    return visible


def attend(
    query: Float[Array, "batch T heads d"],
    key: Float[Array, "batch T key_heads d"],
    value: Float[Array, "batch T key_heads d"],
    *,
    scale: float,
    bias: Float[Array, "heads T T"] | None = None,
    visible: Bool[Array, "batch 1 T T"] | None = None,
) -> Float[Array, "batch T D"]:
    """softmax(scale Q K^T + bias) V with scores in float32, heads joined.

    A prompt is short: scores are a small tensor and no kernel pays for them.

    Args:
      query: may have a multiple of the heads of `key` (grouped-query attention).
      key, value: projections.
      scale: factor of the products; 1 for T5.
      bias: added to the scores.
      visible: false where a score is to have no weight.

    Returns:
      In the dtype of `value`.
    """
    groups = query.shape[2] // key.shape[2]
    if groups > 1:
        key, value = (jnp.repeat(part, groups, axis=2) for part in (key, value))
    scores = jnp.einsum(
        "bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32
    )
    scores = scores * scale if scale != 1.0 else scores
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    if visible is not None:
        # Finite, so that a row of padding alone gives numbers and not NaN.
        scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    return mixed.reshape(*mixed.shape[:2], -1)


def stacked(make: Callable[[nnx.Rngs], nnx.Module], length: int, rngs: nnx.Rngs) -> Any:
    """`length` blocks as one module whose parameters have a leading layer axis."""
    return nnx.split_rngs(splits=length)(nnx.vmap(make))(rngs)


def run_stack(
    blocks: nnx.Module, x: Array, run: Callable[[Any, Array], Array]
) -> Array:
    """Runs stacked blocks one after the other by `lax.scan`.

    Args:
      blocks: what `stacked` made.
      x: residual stream.
      run: (block, x) -> x.
    """
    graph, params = nnx.split(blocks)

    def body(x: Array, layer: Any) -> tuple[Array, None]:
        return run(nnx.merge(graph, layer), x), None

    return jax.lax.scan(body, x, params)[0]


def rotary_angles(
    length: int, head_dim: int, theta: float
) -> tuple[Float[Array, "T half"], Float[Array, "T half"]]:
    """cos and sin of position * theta^(-2 i / head_dim), float32 as in transformers."""
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    inverse = 1.0 / jnp.power(jnp.float32(theta), exponents)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * inverse
    return jnp.cos(angles), jnp.sin(angles)


def rotate_halves(
    x: Float[Array, "batch T heads d"],
    cos: Float[Array, "T half"],
    sin: Float[Array, "T half"],
) -> Float[Array, "batch T heads d"]:
    """Rotates channel i with channel i + d/2 (Llama's pairs), in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    y = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
    return y.astype(x.dtype)


def inverse_root(head_dim: int) -> float:
    """1 / sqrt(head_dim), the usual scale of scores."""
    return 1.0 / math.sqrt(head_dim)
