"""Wan 2.1 and 2.2 (diffusers `WanTransformer3DModel`).

The residual stream holds video tokens only; text (and in Wan2.1 I2V an image) comes in
by cross-attention, whose keys and values are the same in every denoising step. Blocks
are stored stacked on a leading layer axis and run by `lax.scan`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.models.network import (
    NO_EXTRA,
    DescribedNetwork,
    Description,
    Extra,
    PromptInputs,
    for_layer,
    layers_of,
)
from sixbit_jax.models.wan.attention import TextKeysValues
from sixbit_jax.models.wan.block import Conditioning, WanBlock
from sixbit_jax.models.wan.config import WanConfig
from sixbit_jax.models.wan.description import describe
from sixbit_jax.models.wan.embed import (
    ConditionEmbedder,
    PatchEmbedding,
    rotary_table,
)
from sixbit_jax.nn.axes import NO_AXES, Axes
from sixbit_jax.nn.linear import Linear
from sixbit_jax.nn.norms import layer_norm, per_row

_ROLES = (
    ("blocks.attn1.to_", "site"),
    ("blocks.attn2.to_q.", "site"),
    ("blocks.attn2.to_out.", "site"),
    ("blocks.ffn.", "site"),
    ("blocks.attn2.to_", "small_batch"),
    ("blocks.attn2.add_", "small_batch"),
    ("condition_embedder.time_proj.", "small_batch"),
    ("condition_embedder.text_embedder.", "small_batch"),
)


class WanTransformer(DescribedNetwork):
    """The denoising network; parameters have diffusers' names."""

    class_name = "WanTransformer3DModel"
    config_class = WanConfig
    stack_names = ("blocks",)

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.patch_embedding = PatchEmbedding(config, rngs=rngs)
        self.condition_embedder = ConditionEmbedder(config, rngs=rngs)

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap
        def make_block(rngs: nnx.Rngs) -> WanBlock:
            return WanBlock(config, rngs=rngs)

        self.blocks = make_block(rngs)
        self.scale_shift_table = nnx.Param(
            jax.random.normal(rngs.params(), (1, 2, config.dim)) / math.sqrt(config.dim)
        )
        patch = math.prod(config.patch_size)
        self.proj_out = Linear(config.dim, patch * config.out_channels, rngs=rngs)

    @staticmethod
    def weight_role(name: str) -> str | None:
        """How a parameter of this dotted path may be quantized.

        Returns:
          "site" for the weights of quantized linears, "small_batch" for those of
          linears that run on few rows (modulation, everything about the prompt;
          weights only), None for everything that stays as it is.
        """
        if not name.endswith(".weight") or ".norm" in name:
            return None
        roles = (role for prefix, role in _ROLES if name.startswith(prefix))
        return next(roles, None)

    @classmethod
    def describe(cls, config: WanConfig) -> Description:
        """What follows from a configuration, without a network."""
        return describe(config)

    def prepare_prompt(self, given: PromptInputs, *, dtype: Any) -> TextKeysValues:
        """Keys and values of text and image in all layers, once for all steps."""
        return self.text_keys_values(
            given.text, given.image, dtype=dtype, axes=given.axes
        )

    def text_keys_values(
        self,
        text: Float[Array, "batch T E"],
        image: Float[Array, "batch I E2"] | None = None,
        *,
        dtype: jnp.dtype | None = None,
        axes: Axes = NO_AXES,
    ) -> TextKeysValues:
        """What cross-attention reads in all layers; once per prompt.

        Args:
          text: prompt embeddings.
          image: image embeddings of Wan2.1 I2V.
          dtype: compute dtype; None is that of `text`.
          axes: over which the blocks' weights are split.

        Returns:
          Keys and values with a leading layer axis.

        Raises:
          ValueError: if the model needs image embeddings and has none, or has them
            and does not take any.
        """
        embedder = self.condition_embedder
        if (embedder.image_embedder is None) != (image is None):
            wanted = "no image" if embedder.image_embedder is None else "image"
            found = "none" if image is None else f"some of shape {image.shape}"
            raise ValueError(
                f"this model takes {wanted} embeddings (image_dim "
                f"{self.config.image_dim}), found {found}"
            )
        dtype = text.dtype if dtype is None else dtype
        words = embedder.text_embedder(text.astype(dtype))
        if image is not None and embedder.image_embedder is not None:
            image = embedder.image_embedder(image.astype(dtype))
        graph, params = nnx.split(self.blocks.attn2)
        # One layer after the other: stored NVFP4 weights are expanded one at a time.
        return jax.lax.map(
            lambda layer: nnx.merge(graph, axes.gather(layer)).keys_values(
                words, image
            ),
            params,
        )

    def embed(
        self,
        latents: Float[Array, "batch F C H W"],
        prompt: TextKeysValues,
        timestep: Float[Array, "batch *tokens"],
        extra: Extra = NO_EXTRA,
    ) -> tuple[Float[Array, "batch tokens D"], Conditioning]:
        """Everything before the blocks; the dtype of `latents` is the compute dtype.

        Args:
          latents: noisy latents (with the extra channels of I2V models).
          prompt: what `prepare_prompt` made.
          timestep: the timestep of each sample, or of each token.
          extra: `clean_frames`, leading latent frames that are at timestep 0 (TI2V
            with a given first frame). Equal to zeros in a timestep per token, and as
            fast as one timestep.
        """
        config, dtype, clean_frames = self.config, latents.dtype, extra.clean_frames
        grid = config.token_grid(latents.shape[1], *latents.shape[3:])
        if timestep.ndim == 2 and timestep.shape[1] != math.prod(grid):
            raise ValueError(
                f"timestep: expected one per sample or for each of {math.prod(grid)} "
                f"tokens, found {timestep.shape}"
            )
        if clean_frames and (timestep.ndim == 2 or clean_frames % config.patch_size[0]):
            raise ValueError(
                "clean_frames: expected whole tokens and one timestep per sample, "
                f"found {clean_frames} frames and timesteps {timestep.shape}"
            )
        times = self.condition_embedder.time
        clean = (None, None)
        if clean_frames:
            clean = times(jnp.zeros(timestep.shape), dtype)
        conditioning = Conditioning(
            *times(timestep, dtype),
            *clean,
            clean_frames // config.patch_size[0] * grid[1] * grid[2],
            rotary_table(config.attention_head_dim, *grid),
            grid[1] * grid[2],
            {"blocks": prompt},
        )
        return self.patch_embedding(latents), conditioning

    def unembed(
        self,
        x: Float[Array, "batch tokens D"],
        conditioning: Conditioning,
        latent_shape: tuple[int, ...],
    ) -> Float[Array, "batch F C H W"]:
        """Everything after the blocks, for latents of shape [batch, F, C, H, W]."""
        config, table = self.config, self.scale_shift_table[...].astype(jnp.float32)

        def shift_and_scale(temb: Array) -> list[Array]:
            values = table + temb.astype(jnp.float32)[..., None, :]
            return [values[..., 0, :], values[..., 1, :]]

        shift, scale = shift_and_scale(conditioning.temb)
        if shift.ndim == 2:
            first = [shift, scale]
            if conditioning.clean_temb is not None:
                first = shift_and_scale(conditioning.clean_temb)
            shift, scale = (
                per_row(part, clean, conditioning.num_clean, x.shape[1])
                for part, clean in zip((shift, scale), first, strict=True)
            )
        y = layer_norm(x, eps=config.eps) * (1.0 + scale) + shift
        y = self.proj_out(y.astype(x.dtype))
        batch, frames, _, height, width = latent_shape
        grid = config.token_grid(frames, height, width)
        y = y.reshape(batch, *grid, *config.patch_size, config.out_channels)
        # [batch, t, p_t, C, h, p_h, w, p_w]
        y = y.transpose(0, 1, 4, 7, 2, 5, 3, 6)
        return y.reshape(batch, frames, config.out_channels, height, width)

    def __call__(
        self,
        latents: Float[Array, "batch F C H W"],
        text: Float[Array, "batch T E"] | TextKeysValues,
        timestep: Float[Array, "batch *tokens"],
        *,
        image: Float[Array, "batch I E2"] | None = None,
        clean_frames: int = 0,
    ) -> Float[Array, "batch F C H W"]:
        """One full-precision forward pass.

        Args:
          latents, timestep: see `embed`.
          text: prompt embeddings, or what `text_keys_values` made of them.
          image: image embeddings of Wan2.1 I2V, with prompt embeddings only.
          clean_frames: see `embed`.

        Returns:
          The model output (flow prediction), [batch, F, out_channels, H, W].
        """
        if not isinstance(text, TextKeysValues):
            text = self.text_keys_values(text, image, dtype=latents.dtype)
        x, conditioning = self.embed(
            latents, text, timestep, Extra(clean_frames=clean_frames)
        )
        graph, params = nnx.split(self.blocks)

        def body(x, layer):
            params, context = layer
            block = nnx.merge(graph, params)
            return block(x, for_layer(conditioning, context))[0], None

        x, _ = jax.lax.scan(body, x, (params, layers_of(conditioning, "blocks")))
        return self.unembed(x, conditioning, latents.shape)
