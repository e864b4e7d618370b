"""T5 v1.1 and UMT5 encoders (transformers `T5EncoderModel`, `UMT5EncoderModel`).

CogVideoX reads its prompts through T5 v1.1-XXL, Wan through UMT5-XXL. They differ in
one thing: T5 has one table of position biases for all layers, UMT5 one per layer.
Neither scales its scores, and their residual streams grow to about 1e5, so that the
stream stays in float32 whatever the linears compute in.
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sixbit_jax.nn.linear import Linear
from sixbit_jax.text_encoders.layers import (
    Embedding,
    RMSNorm,
    attend,
    run_stack,
    split_heads,
    stacked,
    visible_keys,
)
from sixbit_jax.text_encoders.t5_config import T5Config


def relative_buckets(
    length: int, *, num_buckets: int, max_distance: int
) -> Int[np.ndarray, "T T"]:
    """The bucket of (query, key): half of them for keys after the query.

    Half of each half are exact distances, the rest widens logarithmically up to
    `max_distance`. Computed in float32 in transformers' order of operations, because
    distances of 16, 32 and 64 lie on boundaries.

    Args:
      length: number of tokens, T.
      num_buckets, max_distance: as in the config.
    """
    relative = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = num_buckets // 2
    exact = half // 2
    distance = np.abs(relative)
    # Distances below `exact` are not read from here; 1 keeps the logarithm finite.
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    steps = np.log(ratio) / np.float32(math.log(max_distance / exact))
    wide = exact + (steps * np.float32(half - exact)).astype(np.int64)
    near = np.where(distance < exact, distance, np.minimum(wide, half - 1))
    return (near + half * (relative > 0)).astype(np.int32)


class T5Attention(nnx.Module):
    """Self-attention without biases and without scaled scores."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        dim, inner = config.d_model, config.num_heads * config.d_kv
        self.heads = config.num_heads
        self.q = Linear(dim, inner, bias=False, rngs=rngs)
        self.k = Linear(dim, inner, bias=False, rngs=rngs)
        self.v = Linear(dim, inner, bias=False, rngs=rngs)
        self.o = Linear(inner, dim, bias=False, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch T D"],
        bias: Float[Array, "heads T T"],
        visible: Bool[Array, "batch 1 1 T"] | None,
        *,
        kernels: bool,
    ) -> Float[Array, "batch T D"]:
        q, k, v = (
            split_heads(linear(x, kernels=kernels), self.heads)
            for linear in (self.q, self.k, self.v)
        )
        mixed = attend(q, k, v, scale=1.0, bias=bias, visible=visible)
        return self.o(mixed, kernels=kernels)


class GatedFeedForward(nnx.Module):
    """wo(gelu_tanh(wi_0 x) * wi_1 x)."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.wi_0 = Linear(config.d_model, config.d_ff, bias=False, rngs=rngs)
        self.wi_1 = Linear(config.d_model, config.d_ff, bias=False, rngs=rngs)
        self.wo = Linear(config.d_ff, config.d_model, bias=False, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch T D"], *, kernels: bool
    ) -> Float[Array, "batch T D"]:
        gate = jax.nn.gelu(self.wi_0(x, kernels=kernels), approximate=True)
        return self.wo(gate * self.wi_1(x, kernels=kernels), kernels=kernels)


class T5Block(nnx.Module):
    """Attention and feed-forward, each after a norm and added to the stream."""

    def __init__(self, config: T5Config, *, own_bias: bool, rngs: nnx.Rngs):
        eps = config.layer_norm_epsilon
        self.attention_norm = RMSNorm(config.d_model, eps=eps)
        self.attention = T5Attention(config, rngs=rngs)
        self.relative_attention_bias = _bias_table(config, rngs) if own_bias else None
        self.ff_norm = RMSNorm(config.d_model, eps=eps)
        self.ff = GatedFeedForward(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch T D"],
        shared_bias: Float[Array, "heads T T"] | None,
        buckets: Int[np.ndarray, "T T"],
        visible: Bool[Array, "batch 1 1 T"] | None,
        *,
        dtype: jnp.dtype,
        kernels: bool,
    ) -> Float[Array, "batch T D"]:
        """The new residual stream, float32; linears run in `dtype`."""
        bias = shared_bias
        if self.relative_attention_bias is not None:
            bias = _position_bias(self.relative_attention_bias, buckets)
        assert bias is not None
        h = self.attention_norm(x).astype(dtype)
        x = x + self.attention(h, bias, visible, kernels=kernels).astype(x.dtype)
        h = self.ff_norm(x).astype(dtype)
        return x + self.ff(h, kernels=kernels).astype(x.dtype)


def _bias_table(config: T5Config, rngs: nnx.Rngs) -> Embedding:
    return Embedding(config.relative_attention_num_buckets, config.num_heads, rngs=rngs)


def _position_bias(
    table: Embedding, buckets: Int[np.ndarray, "T T"]
) -> Float[Array, "heads T T"]:
    return jnp.transpose(table(jnp.asarray(buckets)), (2, 0, 1))


class T5Encoder(nnx.Module):
    """T5 v1.1: the position biases of all layers come from one table."""

    class_name: ClassVar[str] = "T5EncoderModel"
    config_class = T5Config
    stacks = ("blocks",)
    bias_per_layer: ClassVar[bool] = False

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        self.shared = Embedding(config.vocab_size, config.d_model, rngs=rngs)
        own_bias = self.bias_per_layer
        self.relative_attention_bias = None if own_bias else _bias_table(config, rngs)
        self.blocks = stacked(
            lambda rngs: T5Block(config, own_bias=own_bias, rngs=rngs),
            config.num_layers,
            rngs,
        )
        self.final_layer_norm = RMSNorm(config.d_model, eps=config.layer_norm_epsilon)

    @staticmethod
    def weight_role(name: str) -> str | None:
        """Of a parameter path: "site" for the linears, None for tables and norms.

        Only weights are quantized here: a prompt is few rows. They are rotated like
        those of a site, which lowers the error of NVFP4 where activations have outlier
        channels (`benchmarks/text_encoders.py`).
        """
        linear = name.startswith(("blocks.attention.", "blocks.ff."))
        return "site" if linear and name.endswith(".weight") else None

    def __call__(
        self,
        ids: Int[Array, "batch T"],
        mask: Bool[Array, "batch T"] | None = None,
        *,
        dtype: jnp.dtype = jnp.float32,
        kernels: bool = False,
    ) -> Float[Array, "batch T D"]:
        """The last hidden state after the final norm, in `dtype`.

        Args:
          ids: token ids.
          mask: true (or 1) for tokens, false for padding that no token may read; None
            lets padding be read like any token, as CogVideoX does.
          dtype: what the linears compute in. The residual stream is float32.
          kernels: whether a GPU kernel may expand stored weights.
        """
        config, length = self.config, ids.shape[1]
        buckets = relative_buckets(
            length,
            num_buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
        )
        shared = None
        if self.relative_attention_bias is not None:
            shared = _position_bias(self.relative_attention_bias, buckets)
        visible = visible_keys(mask, length, causal=False)
        x = run_stack(
            self.blocks,
            self.shared(ids),
            lambda block, x: block(
                x, shared, buckets, visible, dtype=dtype, kernels=kernels
            ),
        )
        return self.final_layer_norm(x).astype(dtype)

    def encode(
        self,
        ids: Int[Array, "batch T"],
        mask: Bool[Array, "batch T"] | None = None,
        *,
        dtype: jnp.dtype = jnp.float32,
        kernels: bool = False,
    ) -> Float[Array, "batch T D"]:
        """Prompt embeddings: the whole output, with zeros in the rows of padding.

        Without a mask (CogVideoX) all rows are used; with one (Wan) the rows after the
        prompt are zeros.
        """
        y = self(ids, mask, dtype=dtype, kernels=kernels)
        return y if mask is None else jnp.where(mask.astype(bool)[..., None], y, 0)


class UMT5Encoder(T5Encoder):
    """UMT5: every layer has its own table of position biases."""

    class_name: ClassVar[str] = "UMT5EncoderModel"
    bias_per_layer: ClassVar[bool] = True
