"""Llama text stack as a prompt encoder (transformers `LlamaModel`; HunyuanVideo)."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sixbit_jax.nn.linear import Linear
from sixbit_jax.text_encoders.layers import (
    Embedding,
    RMSNorm,
    attend,
    inverse_root,
    rotary_angles,
    rotate_halves,
    run_stack,
    split_heads,
    stacked,
    visible_keys,
)
from sixbit_jax.text_encoders.llama_config import LlamaConfig


class LlamaAttention(nnx.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        dim, width = config.hidden_size, config.width_of_head
        self.heads, self.key_heads = config.num_attention_heads, config.key_value_heads
        inner, narrow = self.heads * width, self.key_heads * width
        self.scale = inverse_root(width)
        self.q_proj = Linear(dim, inner, bias=False, rngs=rngs)
        self.k_proj = Linear(dim, narrow, bias=False, rngs=rngs)
        self.v_proj = Linear(dim, narrow, bias=False, rngs=rngs)
        self.o_proj = Linear(inner, dim, bias=False, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch T D"],
        rotary: tuple[Float[Array, "T half"], Float[Array, "T half"]],
        visible: Bool[Array, "batch 1 T T"],
        *,
        kernels: bool,
    ) -> Float[Array, "batch T D"]:
        q = split_heads(self.q_proj(x, kernels=kernels), self.heads)
        k = split_heads(self.k_proj(x, kernels=kernels), self.key_heads)
        v = split_heads(self.v_proj(x, kernels=kernels), self.key_heads)
        q, k = (rotate_halves(part, *rotary) for part in (q, k))
        mixed = attend(q, k, v, scale=self.scale, visible=visible)
        return self.o_proj(mixed, kernels=kernels)


class LlamaFeedForward(nnx.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        dim, hidden = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(dim, hidden, bias=False, rngs=rngs)
        self.up_proj = Linear(dim, hidden, bias=False, rngs=rngs)
        self.down_proj = Linear(hidden, dim, bias=False, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch T D"], *, kernels: bool
    ) -> Float[Array, "batch T D"]:
        gate = jax.nn.silu(self.gate_proj(x, kernels=kernels))
        return self.down_proj(gate * self.up_proj(x, kernels=kernels), kernels=kernels)


class LlamaBlock(nnx.Module):
    """Attention and feed-forward, each after a norm and added to the stream."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        dim, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(dim, eps=eps)
        self.self_attn = LlamaAttention(config, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(dim, eps=eps)
        self.mlp = LlamaFeedForward(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch T D"],
        rotary: tuple[Float[Array, "T half"], Float[Array, "T half"]],
        visible: Bool[Array, "batch 1 T T"],
        *,
        dtype: jnp.dtype,
        kernels: bool,
    ) -> Float[Array, "batch T D"]:
        """The new residual stream, float32; linears run in `dtype`."""
        h = self.input_layernorm(x).astype(dtype)
        h = self.self_attn(h, rotary, visible, kernels=kernels)
        x = x + h.astype(x.dtype)
        h = self.post_attention_layernorm(x).astype(dtype)
        return x + self.mlp(h, kernels=kernels).astype(x.dtype)


class LlamaEncoder(nnx.Module):
    """Embedding, all layers that are run, and the final norm if none is skipped."""

    class_name: ClassVar[str] = "LlamaModel"
    config_class = LlamaConfig
    stacks = ("layers",)

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, rngs=rngs)
        self.layers = stacked(
            lambda rngs: LlamaBlock(config, rngs=rngs), config.num_run_layers, rngs
        )
        whole = config.num_hidden_layers_to_skip == 0
        eps = config.rms_norm_eps
        self.norm = RMSNorm(config.hidden_size, eps=eps) if whole else None

    @staticmethod
    def weight_role(name: str) -> str | None:
        """Of a parameter path: "site" for the linears, None for tables and norms.

        Only weights are quantized here: a prompt is few rows. They are rotated like
        those of a site.
        """
        linear = name.startswith(("layers.self_attn.", "layers.mlp."))
        return "site" if linear and name.endswith(".weight") else None

    def __call__(
        self,
        ids: Int[Array, "batch T"],
        mask: Bool[Array, "batch T"] | None = None,
        *,
        dtype: jnp.dtype = jnp.float32,
        kernels: bool = False,
    ) -> Float[Array, "batch T D"]:
        """transformers' `hidden_states[-(num_hidden_layers_to_skip + 1)]`, in `dtype`.

        Args:
          ids: token ids, padded on the right.
          mask: true (or 1) for tokens, false for padding that no token may read.
          dtype: what the linears compute in. The residual stream is float32.
          kernels: whether a GPU kernel may expand stored weights.
        """
        config, length = self.config, ids.shape[1]
        rotary = rotary_angles(length, config.width_of_head, config.rope_theta)
        visible = visible_keys(mask, length, causal=True)
        assert visible is not None
        x = run_stack(
            self.layers,
            self.embed_tokens(ids),
            lambda block, x: block(x, rotary, visible, dtype=dtype, kernels=kernels),
        )
        return (x if self.norm is None else self.norm(x)).astype(dtype)

    def encode(
        self,
        ids: Int[Array, "batch T"],
        mask: Bool[Array, "batch T"] | None = None,
        *,
        dtype: jnp.dtype = jnp.float32,
        kernels: bool = False,
    ) -> Float[Array, "batch T D"]:
        """Prompt embeddings of all rows; the caller crops its template."""
        return self(ids, mask, dtype=dtype, kernels=kernels)
