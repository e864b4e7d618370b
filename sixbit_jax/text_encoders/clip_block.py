"""One layer of CLIP, the same in its text and its vision encoder."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from sixbit_jax.nn.linear import Linear
from sixbit_jax.nn.norms import LayerNorm
from sixbit_jax.text_encoders.clip_config import CLIPTextConfig, CLIPVisionConfig
from sixbit_jax.text_encoders.layers import attend, inverse_root, split_heads


def activation(x: Array, name: str) -> Array:
    """CLIP's "quick_gelu" (x sigmoid(1.702 x)) or the exact "gelu"."""
    if name == "quick_gelu":
        return x * jax.nn.sigmoid(1.702 * x)
    return jax.nn.gelu(x, approximate=False)


class CLIPAttention(nnx.Module):
    """Self-attention with biases."""

    def __init__(self, dim: int, heads: int, *, rngs: nnx.Rngs):
        self.heads, self.scale = heads, inverse_root(dim // heads)
        self.q_proj = Linear(dim, dim, rngs=rngs)
        self.k_proj = Linear(dim, dim, rngs=rngs)
        self.v_proj = Linear(dim, dim, rngs=rngs)
        self.out_proj = Linear(dim, dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch T D"],
        visible: Bool[Array, "batch 1 T T"] | None,
        *,
        kernels: bool,
    ) -> Float[Array, "batch T D"]:
        q, k, v = (
            split_heads(linear(x, kernels=kernels), self.heads)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = attend(q, k, v, scale=self.scale, visible=visible)
        return self.out_proj(mixed, kernels=kernels)


class CLIPFeedForward(nnx.Module):
    """Two linears with an activation between them."""

    def __init__(self, dim: int, hidden: int, name: str, *, rngs: nnx.Rngs):
        self.activation = name
        self.fc1 = Linear(dim, hidden, rngs=rngs)
        self.fc2 = Linear(hidden, dim, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch T D"], *, kernels: bool
    ) -> Float[Array, "batch T D"]:
        h = activation(self.fc1(x, kernels=kernels), self.activation)
        return self.fc2(h, kernels=kernels)


class CLIPBlock(nnx.Module):
    """Attention and feed-forward, each after a norm and added to the stream."""

    def __init__(self, config: CLIPTextConfig | CLIPVisionConfig, *, rngs: nnx.Rngs):
        dim, eps = config.hidden_size, config.layer_norm_eps
        self.layer_norm1 = LayerNorm(dim, eps=eps)
        self.self_attn = CLIPAttention(dim, config.num_attention_heads, rngs=rngs)
        self.layer_norm2 = LayerNorm(dim, eps=eps)
        self.mlp = CLIPFeedForward(
            dim, config.intermediate_size, config.hidden_act, rngs=rngs
        )

    def __call__(
        self,
        x: Float[Array, "batch T D"],
        visible: Bool[Array, "batch 1 T T"] | None = None,
        *,
        dtype: jnp.dtype,
        kernels: bool,
    ) -> Float[Array, "batch T D"]:
        """The new residual stream, float32; linears run in `dtype`."""
        h = self.layer_norm1(x).astype(dtype)
        x = x + self.self_attn(h, visible, kernels=kernels).astype(x.dtype)
        h = self.layer_norm2(x).astype(dtype)
        return x + self.mlp(h, kernels=kernels).astype(x.dtype)


def weight_role(name: str) -> str | None:
    """Of a parameter path: "site" for the linears of the layers, else None."""
    linear = name.startswith(("layers.self_attn.", "layers.mlp."))
    return "site" if linear and name.endswith(".weight") else None
