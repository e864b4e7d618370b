"""HunyuanVideo (diffusers `HunyuanVideoTransformer3DModel`).

One residual stream holds video tokens first and text tokens after them. Dual blocks,
then single blocks; both are stored stacked on a leading layer axis and run by
`lax.scan`. Padding of the text is computed and never read: queries see the video and
the text before it.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from sixbit_jax.models.hunyuan_video.block import (
    EPS,
    Conditioning,
    DualBlock,
    SingleBlock,
)
from sixbit_jax.models.hunyuan_video.config import HunyuanVideoConfig
from sixbit_jax.models.hunyuan_video.description import describe
from sixbit_jax.models.hunyuan_video.embed import (
    ConditionEmbedding,
    EmbeddedPrompt,
    PatchEmbedding,
    embed_prompt,
    rotary_table,
    valid_tokens,
)
from sixbit_jax.models.hunyuan_video.refiner import TokenRefiner
from sixbit_jax.models.network import (
    NO_EXTRA,
    DescribedNetwork,
    Description,
    Extra,
    PromptInputs,
)
from sixbit_jax.nn.linear import Linear
from sixbit_jax.nn.norms import layer_norm

_ROLES = (
    ("transformer_blocks.attn.", "site"),
    ("transformer_blocks.ff", "site"),
    ("transformer_blocks.norm1", "small_batch"),
    ("single_transformer_blocks.attn.", "site"),
    ("single_transformer_blocks.proj_", "site"),
    ("single_transformer_blocks.norm.", "small_batch"),
    ("context_embedder.", "small_batch"),
    ("time_text_embed.", "small_batch"),
    ("norm_out.", "small_batch"),
)
# Norms with weights; the other modules of that name hold a linear.
_NORMS = (".norm_q.", ".norm_k.", ".norm_added_q.", ".norm_added_k.")
_REFINER_NORMS = (".norm1.", ".norm2.")


class OutputNorm(nnx.Module):
    """LayerNorm with scale and shift (diffusers `AdaLayerNormContinuous`)."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.linear = Linear(dim, 2 * dim, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch tokens D"], temb: Float[Array, "batch D"]
    ) -> Float[Array, "batch tokens D"]:
        values = self.linear(jax.nn.silu(temb)).astype(jnp.float32)
        scale, shift = jnp.split(values[:, None, :], 2, -1)
        return (layer_norm(x, eps=EPS) * (1.0 + scale) + shift).astype(x.dtype)


class HunyuanVideoTransformer(DescribedNetwork):
    """The denoising network; parameters have diffusers' names."""

    class_name = "HunyuanVideoTransformer3DModel"
    config_class = HunyuanVideoConfig
    stack_names = ("transformer_blocks", "single_transformer_blocks")

    def __init__(self, config: HunyuanVideoConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.x_embedder = PatchEmbedding(config, rngs=rngs)
        self.context_embedder = TokenRefiner(config, rngs=rngs)
        self.time_text_embed = ConditionEmbedding(config, rngs=rngs)

        def stacked(kind: type, count: int) -> Any:
            @nnx.split_rngs(splits=count)
            @nnx.vmap
            def make(rngs: nnx.Rngs) -> nnx.Module:
                return kind(config, rngs=rngs)

            return make(rngs)

        self.transformer_blocks = stacked(DualBlock, config.num_layers)
        self.single_transformer_blocks = stacked(SingleBlock, config.num_single_layers)
        self.norm_out = OutputNorm(config.dim, rngs=rngs)
        out = math.prod(config.patch) * config.out_channels
        self.proj_out = Linear(config.dim, out, rngs=rngs)

    @staticmethod
    def weight_role(name: str) -> str | None:
        """How a parameter of this dotted path may be quantized.

        Returns:
          "site" for the weights of quantized linears, "small_batch" for those of
          linears that run on few rows (modulation, everything before the blocks about
          prompt and timestep; weights only), None for everything that stays as it is.
        """
        refiner = name.startswith("context_embedder.")
        norms = (*_NORMS, *_REFINER_NORMS) if refiner else _NORMS
        if not name.endswith(".weight") or any(norm in name for norm in norms):
            return None
        roles = (role for prefix, role in _ROLES if name.startswith(prefix))
        return next(roles, None)

    @classmethod
    def describe(cls, config: HunyuanVideoConfig) -> Description:
        """What follows from a configuration, without a network."""
        return describe(config)

    def prepare_prompt(self, given: PromptInputs, *, dtype: Any) -> EmbeddedPrompt:
        """Tokens before the refiner, and embedded means; once for all steps.

        Raises:
          ValueError: the mask or the pooled embedding is missing.
        """
        if given.mask is None or given.pooled is None:
            absent = {"mask": given.mask is None, "pooled": given.pooled is None}
            missing = " and ".join(
                name for name, is_absent in absent.items() if is_absent
            )
            raise ValueError(f"prompt: expected {missing}, found none")
        return embed_prompt(
            self.context_embedder,
            self.time_text_embed,
            given.text,
            given.mask,
            given.pooled,
            dtype,
        )

    def embed(
        self,
        latents: Float[Array, "batch F C H W"],
        prompt: EmbeddedPrompt,
        timestep: Float[Array, "batch"],
        extra: Extra = NO_EXTRA,
    ) -> tuple[Float[Array, "batch tokens D"], Conditioning]:
        """Everything before the blocks; the dtype of `latents` is the compute dtype.

        Args:
          latents: noisy latents (with image latents and mask of latent_concat).
          prompt: what `prepare_prompt` made.
          timestep: the timestep of each sample.
          extra: `guidance`, the scale that the network reads. Networks of
            token_replace have a clean first frame whatever `clean_frames` says.
        """
        config = self.config
        grid = config.token_grid(latents.shape[1], *latents.shape[3:])
        video = self.x_embedder(latents)
        text = self.context_embedder(prompt.tokens, prompt.mean, prompt.mask, timestep)
        temb = self.time_text_embed(timestep, prompt.pooled, extra.guidance)
        clean, num_clean = None, 0
        if config.image_condition_type == "token_replace":
            clean = self.time_text_embed.clean(prompt.pooled)
            num_clean = grid[1] * grid[2]
        conditioning = Conditioning(
            temb=temb,
            clean_temb=clean,
            num_clean=num_clean,
            num_video=video.shape[1],
            frame_tokens=grid[1] * grid[2],
            key_lengths=valid_tokens(video.shape[1], prompt.mask),
            rotary=rotary_table(config, grid, text.shape[1]),
        )
        return jnp.concatenate([video, text], 1), conditioning

    def unembed(
        self,
        x: Float[Array, "batch tokens D"],
        conditioning: Conditioning,
        latent_shape: tuple[int, ...],
    ) -> Float[Array, "batch F C H W"]:
        """Everything after the blocks, for latents of shape [batch, F, C, H, W]."""
        config = self.config
        video = self.norm_out(x[:, : conditioning.num_video], conditioning.temb)
        y = self.proj_out(video)
        batch, frames, _, height, width = latent_shape
        grid = config.token_grid(frames, height, width)
        y = y.reshape(batch, *grid, config.out_channels, *config.patch)
        # [batch, t, p_t, C, h, p_h, w, p_w]
        y = y.transpose(0, 1, 5, 4, 2, 6, 3, 7)
        return y.reshape(batch, frames, config.out_channels, height, width)

    def __call__(
        self,
        latents: Float[Array, "batch F C H W"],
        text: Float[Array, "batch T E"],
        mask: Bool[Array, "batch T"],
        pooled: Float[Array, "batch P"],
        timestep: Float[Array, "batch"],
        guidance: Float[Array, "batch"] | None = None,
    ) -> Float[Array, "batch F C H W"]:
        """One full-precision forward pass.

        Args:
          latents: noisy latents; their dtype is the compute dtype.
          text: prompt embeddings.
          mask: which of them are no padding.
          pooled: embedding of the whole prompt.
          timestep: the timestep of each sample.
          guidance: scale that the network reads (6.0 as published).

        Returns:
          The model output (flow prediction), [batch, F, out_channels, H, W].
        """
        given = PromptInputs(text, mask, pooled)
        prompt = self.prepare_prompt(given, dtype=latents.dtype)
        x, conditioning = self.embed(
            latents, prompt, timestep, Extra(guidance=guidance)
        )
        for blocks in self.blocks_by_stack().values():
            graph, params = nnx.split(blocks)

            def body(x, params, graph=graph):
                return nnx.merge(graph, params)(x, conditioning)[0], None

            x, _ = jax.lax.scan(body, x, params)
        return self.unembed(x, conditioning, latents.shape)
