"""From latents, timesteps, prompt and image embeddings to what Wan's blocks read."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.models.wan.config import WanConfig
from sixbit_jax.nn.embeddings import TimestepEmbedding, sinusoidal_embedding
from sixbit_jax.nn.linear import Linear, matmul
from sixbit_jax.nn.norms import LayerNorm
from sixbit_jax.nn.rope import RotaryTable


def rotary_table(
    head_dim: int, frames: int, height: int, width: int, *, theta: float = 10_000.0
) -> RotaryTable:
    """Rotary table of a token grid, made in float64.

    Rows and columns have `2 (head_dim // 6)` channels each, time has the rest
    (44 / 42 / 42 of 128); positions are 0, 1, 2, ...

    Args:
      head_dim: channels of a head, even.
      frames, height, width: size of the token grid.
      theta: base of the frequencies.
    """
    space = 2 * (head_dim // 6)
    parts = []
    for axis, (size, dim) in enumerate(
        ((frames, head_dim - 2 * space), (height, space), (width, space))
    ):
        inverse = 1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
        angles = np.outer(np.arange(size, dtype=np.float64), inverse)
        shape = [1, 1, 1, dim // 2]
        shape[axis] = size
        parts.append(
            np.broadcast_to(angles.reshape(shape), (frames, height, width, dim // 2))
        )
    angles = np.concatenate(parts, -1).reshape(-1, head_dim // 2)
    return RotaryTable(
        np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    )


class PatchEmbedding(nnx.Module):
    """Non-overlapping patches times a matrix, stored as the convolution that it is."""

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
        self.config = config
        shape = (config.dim, config.in_channels, *config.patch_size)
        linear = Linear(int(np.prod(shape[1:])), config.dim, rngs=rngs)
        self.weight = nnx.Param(linear.weight[...].reshape(shape))
        self.bias = nnx.Param(jnp.zeros((config.dim,)))

    def __call__(
        self, latents: Float[Array, "batch F C H W"]
    ) -> Float[Array, "batch tokens D"]:
        """The video tokens, in the dtype of the latents."""
        config = self.config
        batch, frames, channels, height, width = latents.shape
        t, h, w = config.token_grid(frames, height, width)
        p_t, p_h, p_w = config.patch_size
        x = latents.reshape(batch, t, p_t, channels, h, p_h, w, p_w)
        # [batch, t, h, w, C, p_t, p_h, p_w]: the order of the stored weight.
        x = x.transpose(0, 1, 4, 6, 3, 2, 5, 7).reshape(batch, t * h * w, -1)
        return matmul(x, self.weight[...].reshape(config.dim, -1), self.bias[...])


class TextEmbedder(nnx.Module):
    """Two linears with a tanh-approximated GELU between them."""

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
        self.linear_1 = Linear(config.text_dim, config.dim, rngs=rngs)
        self.linear_2 = Linear(config.dim, config.dim, rngs=rngs)

    def __call__(self, text: Float[Array, "batch T E"]) -> Float[Array, "batch T D"]:
        return self.linear_2(jax.nn.gelu(self.linear_1(text), approximate=True))


class ImageFeedForward(nnx.Module):
    """Two linears with an exact GELU between them."""

    def __init__(self, in_dim: int, out_dim: int, *, rngs: nnx.Rngs):
        self.up = Linear(in_dim, in_dim, rngs=rngs)
        self.down = Linear(in_dim, out_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "batch I E"]) -> Float[Array, "batch I D"]:
        return self.down(jax.nn.gelu(self.up(x), approximate=False))


class ImageEmbedder(nnx.Module):
    """CLIP image tokens to the width of the model (Wan2.1 I2V)."""

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
        assert config.image_dim is not None
        self.norm1 = LayerNorm(config.image_dim, eps=1e-5)
        self.ff = ImageFeedForward(config.image_dim, config.dim, rngs=rngs)
        self.norm2 = LayerNorm(config.dim, eps=1e-5)
        length = config.pos_embed_seq_len
        self.pos_embed = (
            nnx.Param(jnp.zeros((1, length, config.image_dim))) if length else None
        )

    def __call__(self, image: Float[Array, "batch I E"]) -> Float[Array, "batch I D"]:
        """Embeds the tokens of one image, or of two one after the other.

        Raises:
          ValueError: if the number of tokens is not that of the learned positions.
        """
        if self.pos_embed is not None:
            expected = self.pos_embed[...].shape[1]
            if image.shape[1] != expected:
                raise ValueError(
                    f"image embeddings: expected {expected} tokens (first and last "
                    f"frame), found {image.shape[1]}"
                )
            image = image + self.pos_embed[...].astype(image.dtype)
        return self.norm2(self.ff(self.norm1(image)))


class ConditionEmbedder(nnx.Module):
    """Embeds timesteps, text and image; names are diffusers'."""

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
        self.freq_dim, self.dim = config.freq_dim, config.dim
        self.time_embedder = TimestepEmbedding(config.freq_dim, config.dim, rngs=rngs)
        self.time_proj = Linear(config.dim, 6 * config.dim, rngs=rngs)
        self.text_embedder = TextEmbedder(config, rngs=rngs)
        self.image_embedder = (
            None if config.image_dim is None else ImageEmbedder(config, rngs=rngs)
        )

    def time(
        self, timestep: Float[Array, "*rows"], dtype: jnp.dtype
    ) -> tuple[Float[Array, "*rows D"], Float[Array, "*rows 6 D"]]:
        """The timestep embedding, and the modulation before each block's own table.

        The embedder runs in float32 whatever the compute dtype, as in diffusers.
        """
        angles = sinusoidal_embedding(timestep.reshape(-1), self.freq_dim)
        temb = self.time_embedder(angles).astype(dtype)
        temb = temb.reshape(*timestep.shape, self.dim)
        modulation = self.time_proj(jax.nn.silu(temb))
        return temb, modulation.reshape(*timestep.shape, 6, self.dim)
