"""HunyuanVideo's token refiner: a small transformer over the text, in every step."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from sixbit_jax.models.hunyuan_video.config import HunyuanVideoConfig
from sixbit_jax.nn.embeddings import TimestepEmbedding, sinusoidal_embedding
from sixbit_jax.nn.linear import Linear
from sixbit_jax.nn.norms import LayerNorm

FREQUENCIES = 256
"""Width of the sinusoidal embedding of timesteps and of the guidance scale."""
_EPS = 1e-6
_RATIO = 4


class RefinerAttention(nnx.Module):
    """Attention among the text tokens."""

    def __init__(self, config: HunyuanVideoConfig, *, rngs: nnx.Rngs):
        dim = config.dim
        self.head_dim = config.attention_head_dim
        self.to_q = Linear(dim, dim, rngs=rngs)
        self.to_k = Linear(dim, dim, rngs=rngs)
        self.to_v = Linear(dim, dim, rngs=rngs)
        self.to_out = Linear(dim, dim, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch T D"], mask: Bool[Array, "batch 1 T T"]
    ) -> Float[Array, "batch T D"]:
        shape = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (
            linear(x).reshape(shape) for linear in (self.to_q, self.to_k, self.to_v)
        )
        # A few hundred tokens: a mask of the scores costs nothing.
        mixed = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")
        return self.to_out(mixed.reshape(x.shape))


class RefinerFeedForward(nnx.Module):
    """Two linears with a SiLU between them."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.up = Linear(dim, _RATIO * dim, rngs=rngs)
        self.down = Linear(_RATIO * dim, dim, rngs=rngs)

    def __call__(self, x: Float[Array, "batch T D"]) -> Float[Array, "batch T D"]:
        return self.down(jax.nn.silu(self.up(x)))


class RefinerGates(nnx.Module):
    """A gate for each half of a block (diffusers `HunyuanVideoAdaNorm`)."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.linear = Linear(dim, 2 * dim, rngs=rngs)

    def __call__(self, temb: Float[Array, "batch D"]) -> list[Array]:
        return jnp.split(self.linear(jax.nn.silu(temb))[:, None], 2, -1)


class RefinerBlock(nnx.Module):
    """One block; the timestep gates its two halves and changes nothing else."""

    def __init__(self, config: HunyuanVideoConfig, *, rngs: nnx.Rngs):
        dim = config.dim
        self.norm1 = LayerNorm(dim, eps=_EPS)
        self.attn = RefinerAttention(config, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=_EPS)
        self.ff = RefinerFeedForward(dim, rngs=rngs)
        self.norm_out = RefinerGates(dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch T D"],
        temb: Float[Array, "batch D"],
        mask: Bool[Array, "batch 1 T T"],
    ) -> Float[Array, "batch T D"]:
        attn_gate, ff_gate = self.norm_out(temb)
        x = x + attn_gate * self.attn(self.norm1(x), mask)
        return x + ff_gate * self.ff(self.norm2(x))


class RefinerEmbedding(nnx.Module):
    """Embeds the timestep and the mean of the text."""

    def __init__(self, config: HunyuanVideoConfig, *, rngs: nnx.Rngs):
        dim = config.dim
        self.timestep_embedder = TimestepEmbedding(FREQUENCIES, dim, rngs=rngs)
        self.text_embedder = TimestepEmbedding(config.text_embed_dim, dim, rngs=rngs)


class RefinerBlocks(nnx.Module):
    """The blocks, one after the other."""

    def __init__(self, config: HunyuanVideoConfig, *, rngs: nnx.Rngs):
        self.refiner_blocks = nnx.List(
            [RefinerBlock(config, rngs=rngs) for _ in range(config.num_refiner_layers)]
        )


class TokenRefiner(nnx.Module):
    """Text tokens of the joint stream; names are diffusers'."""

    def __init__(self, config: HunyuanVideoConfig, *, rngs: nnx.Rngs):
        self.time_text_embed = RefinerEmbedding(config, rngs=rngs)
        self.proj_in = Linear(config.text_embed_dim, config.dim, rngs=rngs)
        self.token_refiner = RefinerBlocks(config, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "batch T D"],
        mean: Float[Array, "batch D"],
        mask: Bool[Array, "batch T"],
        timestep: Float[Array, "batch"],
    ) -> Float[Array, "batch T D"]:
        """The refined tokens.

        Args:
          tokens: the tokens of `proj_in`.
          mean: the embedded mean of the text.
          mask: which tokens are no padding.
          timestep: the timestep of each sample.
        """
        angles = sinusoidal_embedding(timestep, FREQUENCIES, rounded_once=True)
        angles = angles.astype(tokens.dtype)
        temb = self.time_text_embed.timestep_embedder(angles) + mean
        # Every query sees the first token, so that rows of padding are numbers.
        visible = (mask[:, :, None] & mask[:, None, :]).at[:, :, 0].set(True)
        for block in self.token_refiner.refiner_blocks:
            tokens = block(tokens, temb, visible[:, None])
        return tokens
