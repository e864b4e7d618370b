"""From latents and prompt embeddings to the tokens of a CogVideoX transformer."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.models.cogvideox.config import CogVideoXConfig
from sixbit_jax.nn.embeddings import sincos_3d
from sixbit_jax.nn.linear import Linear, matmul


class PatchEmbed(nnx.Module):
    """Projects latents and text to tokens, and adds positions where used."""

    def __init__(self, config: CogVideoXConfig, *, rngs: nnx.Rngs):
        self.config = config
        channels, patch = config.in_channels, config.patch_size
        if config.patch_size_t is None:
            shape = (config.dim, channels, patch, patch)
            bias = config.patch_bias
        else:
            shape = (config.dim, channels * patch * patch * config.patch_size_t)
            # The linear of 1.5 has a bias whatever patch_bias says.
            bias = True
        fan_in = int(np.prod(shape[1:]))
        self.proj = Linear(fan_in, config.dim, bias=bias, rngs=rngs)
        self.proj.weight = nnx.Param(self.proj.weight[...].reshape(shape))
        self.text_proj = Linear(config.text_embed_dim, config.dim, rngs=rngs)
        self.pos_embedding = (
            nnx.Param(
                self._padded_table(
                    config.sample_latent_frames, config.max_text_seq_length
                )[None]
            )
            if config.use_learned_positional_embeddings
            else None
        )

    def sincos_table(self, frames: int, height: int, width: int) -> np.ndarray:
        """Fixed positions of a token grid, float32 [tokens, D]."""
        return sincos_3d(
            self.config.dim,
            frames=frames,
            height=height,
            width=width,
            spatial_scale=self.config.spatial_interpolation_scale,
            temporal_scale=self.config.temporal_interpolation_scale,
        )

    def patches(
        self, latents: Float[Array, "batch F C H W"]
    ) -> Float[Array, "batch tokens P"]:
        """Cuts latents into patches in the channel order of the stored weight."""
        batch, frames, channels, height, width = latents.shape
        grid = self.config.token_grid(frames, height, width)
        p, p_t = self.config.patch_size, self.config.patch_size_t or 1
        x = latents.reshape(batch, grid[0], p_t, channels, grid[1], p, grid[2], p)
        # [batch, t, h, w, C, p_t, p, p]; without p_t this is the convolution's order.
        x = x.transpose(0, 1, 4, 6, 3, 2, 5, 7)
        return x.reshape(batch, grid[0] * grid[1] * grid[2], -1)

    def __call__(
        self, latents: Float[Array, "batch F C H W"], text: Float[Array, "batch T E"]
    ) -> Float[Array, "batch tokens D"]:
        """Text tokens, then video tokens."""
        config = self.config
        weight = self.proj.weight[...].reshape(config.dim, -1)
        patches = self.patches(latents)
        bias = self.proj.affine().bias
        video = matmul(patches, weight, bias).astype(jnp.float32)
        text = self.text_proj(text).astype(jnp.float32)
        x = jnp.concatenate([text, video], axis=1)
        if self.pos_embedding is not None:
            x = x + self._learned_positions(latents, text.shape[1])
        elif not config.use_rotary_positional_embeddings:
            grid = config.token_grid(latents.shape[1], *latents.shape[3:])
            x = x + np.pad(self.sincos_table(*grid), ((text.shape[1], 0), (0, 0)))
        return x.astype(latents.dtype)

    def _padded_table(self, frames: int, num_text: int) -> Array:
        table = self.sincos_table(frames, *self.config.sample_grid)
        return jnp.asarray(np.pad(table, ((num_text, 0), (0, 0))))

    def _learned_positions(self, latents: Array, num_text: int) -> Array:
        config = self.config
        frames, _, height, width = latents.shape[1:]
        if (height, width) != (config.sample_height, config.sample_width):
            raise ValueError(
                "learned positional embeddings fix the latent size: expected "
                f"{config.sample_height}x{config.sample_width}, found {height}x{width}"
            )
        if num_text != config.max_text_seq_length:
            raise ValueError(
                "learned positional embeddings fix the text length: expected "
                f"{config.max_text_seq_length} tokens, found {num_text}"
            )
        if frames != config.sample_latent_frames:
            # diffusers falls back to the fixed table for another number of frames.
            return self._padded_table(frames, num_text)
        assert self.pos_embedding is not None
        return self.pos_embedding[...].astype(jnp.float32)
