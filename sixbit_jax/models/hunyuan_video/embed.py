"""From latents, timesteps and prompts to what HunyuanVideo's blocks read."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from sixbit_jax.models.hunyuan_video.config import HunyuanVideoConfig
from sixbit_jax.models.hunyuan_video.refiner import FREQUENCIES, TokenRefiner
from sixbit_jax.nn.embeddings import TimestepEmbedding, sinusoidal_embedding
from sixbit_jax.nn.linear import Linear, matmul
from sixbit_jax.nn.rope import RotaryTable

GUIDANCE_UNITS = 1000.0
"""The network reads its guidance scale in thousandths, as it reads noise levels."""


class EmbeddedPrompt(NamedTuple):
    """What of a prompt is the same in all steps.

    Attributes:
      tokens: embeddings in the width of the network, before the refiner.
      mean: embedded mean of the tokens that are no padding, for the refiner.
      pooled: embedded pooled embedding.
      mask: which tokens are no padding.
    """

    tokens: Float[Array, "rows T D"]
    mean: Float[Array, "rows D"]
    pooled: Float[Array, "rows D"]
    mask: Bool[Array, "rows T"]


def rotary_table(
    config: HunyuanVideoConfig, grid: tuple[int, int, int], text_tokens: int
) -> RotaryTable:
    """Rotary table of the video tokens, then of text tokens, which are not turned.

    Positions are 0, 1, 2, ... on each axis, computed in float32.

    Args:
      config: for the channels of each axis and the base of the frequencies.
      grid: size of the token grid.
      text_tokens: rows after those of the video.
    """
    parts = []
    for axis, (size, dim) in enumerate(zip(grid, config.rope_axes_dim, strict=True)):
        exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
        inverse = (1.0 / np.power(np.float32(config.rope_theta), exponent)).astype("f")
        angles = np.outer(np.arange(size, dtype=np.float32), inverse)
        shape = [1, 1, 1, dim // 2]
        shape[axis] = size
        parts.append(np.broadcast_to(angles.reshape(shape), (*grid, dim // 2)))
    angles = np.concatenate(parts, -1).reshape(-1, config.attention_head_dim // 2)
    angles = np.pad(angles, ((0, text_tokens), (0, 0)))
    return RotaryTable(
        np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    )


class PatchProjection(nnx.Module):
    """Non-overlapping patches times a matrix, stored as the convolution that it is."""

    def __init__(self, config: HunyuanVideoConfig, *, rngs: nnx.Rngs):
        shape = (config.dim, config.in_channels, *config.patch)
        linear = Linear(int(np.prod(shape[1:])), config.dim, rngs=rngs)
        self.weight = nnx.Param(linear.weight[...].reshape(shape))
        self.bias = nnx.Param(jnp.zeros((config.dim,)))


class PatchEmbedding(nnx.Module):
    """Video tokens of latents; names are diffusers'."""

    def __init__(self, config: HunyuanVideoConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.proj = PatchProjection(config, rngs=rngs)

    def __call__(
        self, latents: Float[Array, "batch F C H W"]
    ) -> Float[Array, "batch tokens D"]:
        """The video tokens, in the dtype of the latents."""
        config = self.config
        batch, frames, channels, height, width = latents.shape
        t, h, w = config.token_grid(frames, height, width)
        p_t, p_h, p_w = config.patch
        x = latents.reshape(batch, t, p_t, channels, h, p_h, w, p_w)
        # [batch, t, h, w, C, p_t, p_h, p_w]: the order of the stored weight.
        x = x.transpose(0, 1, 4, 6, 3, 2, 5, 7).reshape(batch, t * h * w, -1)
        weight = self.proj.weight[...].reshape(config.dim, -1)
        return matmul(x, weight, self.proj.bias[...])


class ConditionEmbedding(nnx.Module):
    """Embeds timestep, guidance scale and pooled prompt; names are diffusers'."""

    def __init__(self, config: HunyuanVideoConfig, *, rngs: nnx.Rngs):
        dim = config.dim
        self.timestep_embedder = TimestepEmbedding(FREQUENCIES, dim, rngs=rngs)
        self.text_embedder = TimestepEmbedding(
            config.pooled_projection_dim, dim, rngs=rngs
        )
        self.guidance_embedder = (
            TimestepEmbedding(FREQUENCIES, dim, rngs=rngs)
            if config.guidance_embeds
            else None
        )

    def __call__(
        self,
        timestep: Float[Array, "batch"],
        pooled: Float[Array, "batch D"],
        guidance: Float[Array, "batch"] | None,
    ) -> Float[Array, "batch D"]:
        """The conditioning of all blocks, in the dtype of `pooled`.

        Args:
          timestep: the timestep of each sample.
          pooled: the embedded pooled prompt.
          guidance: scale that the network reads.

        Raises:
          ValueError: the network reads a scale and is given none, or the reverse.
        """
        if (guidance is None) != (self.guidance_embedder is None):
            wanted = "no" if self.guidance_embedder is None else "a"
            found = "none" if guidance is None else "one"
            raise ValueError(
                f"this model reads {wanted} guidance scale (guidance_embeds), found "
                f"{found}"
            )
        temb = self._of(self.timestep_embedder, timestep, pooled.dtype)
        if guidance is not None and self.guidance_embedder is not None:
            scale = guidance.astype(jnp.float32) * GUIDANCE_UNITS
            temb = temb + self._of(self.guidance_embedder, scale, pooled.dtype)
        return temb + pooled

    def clean(self, pooled: Float[Array, "batch D"]) -> Float[Array, "batch D"]:
        """The conditioning of frames without noise: timestep 0, no guidance."""
        zero = jnp.zeros(pooled.shape[0])
        return self._of(self.timestep_embedder, zero, pooled.dtype) + pooled

    @staticmethod
    def _of(embedder: TimestepEmbedding, values: Array, dtype: jnp.dtype) -> Array:
        angles = sinusoidal_embedding(values, FREQUENCIES, rounded_once=True)
        return embedder(angles.astype(dtype))


def embed_prompt(
    refiner: TokenRefiner,
    conditions: ConditionEmbedding,
    text: Float[Array, "rows T E"],
    mask: Bool[Array, "rows T"],
    pooled: Float[Array, "rows P"],
    dtype: jnp.dtype,
) -> EmbeddedPrompt:
    """Everything of a prompt that no timestep changes.

    Args:
      refiner, conditions: those of the network.
      text: embeddings.
      mask: which tokens are no padding; padding comes last.
      pooled: embedding of the whole prompt.
      dtype: compute dtype.
    """
    mask = mask.astype(bool)
    counts = mask.sum(1, keepdims=True).astype(jnp.float32)
    words = jnp.where(mask[..., None], text.astype(jnp.float32), 0.0)
    mean = words.sum(1) / jnp.maximum(counts, 1.0)
    return EmbeddedPrompt(
        tokens=refiner.proj_in(text.astype(dtype)),
        mean=refiner.time_text_embed.text_embedder(mean.astype(dtype)),
        pooled=conditions.text_embedder(pooled.astype(dtype)),
        mask=mask,
    )


def valid_tokens(video_tokens: int, mask: Bool[Array, "rows T"]) -> jax.Array:
    """How many tokens of [video, text] every sample's queries see, int32 [rows]."""
    return video_tokens + mask.sum(1).astype(jnp.int32)


__all__ = [
    "ConditionEmbedding",
    "EmbeddedPrompt",
    "PatchEmbedding",
    "embed_prompt",
    "rotary_table",
    "valid_tokens",
]
