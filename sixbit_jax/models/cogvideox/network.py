"""CogVideoX 2b, 5b and 1.5 (diffusers `CogVideoXTransformer3DModel`).

One residual stream holds text tokens first and video tokens after them. Blocks are
stored stacked on a leading layer axis and run by `lax.scan`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pallas_kernels.norm_rope import Heads, Rotary
from sixbit_jax.models.blocks import BlockControl, BlockStats, Projection, SiteRunner
from sixbit_jax.models.cogvideox.config import CogVideoXConfig
from sixbit_jax.models.cogvideox.description import SITES, describe
from sixbit_jax.models.cogvideox.embed import PatchEmbed
from sixbit_jax.models.network import (
    NO_EXTRA,
    DescribedNetwork,
    Description,
    Extra,
    PromptInputs,
)
from sixbit_jax.nn.embeddings import (
    TimestepEmbedding,
    sinusoidal_embedding,
)
from sixbit_jax.nn.fusion import GatedResidual, Gelu, Modulate
from sixbit_jax.nn.linear import Linear
from sixbit_jax.nn.norms import LayerNorm, layer_norm
from sixbit_jax.nn.rope import RotaryTable, rotary_3d
from sixbit_jax.nn.site import SiteOptions
from sixbit_jax.nn.sparse_attention import TokenLayout

_ROLES = (
    ("transformer_blocks.attn1.to_", "site"),
    ("transformer_blocks.ff.", "site"),
    ("transformer_blocks.norm1.linear.", "small_batch"),
    ("transformer_blocks.norm2.linear.", "small_batch"),
    ("norm_out.linear.", "small_batch"),
    ("time_embedding.", "small_batch"),
    ("ofs_embedding.", "small_batch"),
    ("patch_embed.text_proj.", "small_batch"),
)


class Conditioning(NamedTuple):
    """What every block reads besides the residual stream.

    Attributes:
      temb: timestep (and ofs) embedding, [batch, time_embed_dim].
      rotary: table of the video tokens, or None (2b). Constant.
      num_text: number of text tokens. Static.
      frame_tokens: number of tokens of a frame. Static.
      per_layer: layers read nothing on their own.
    """

    temb: Float[Array, "batch E"]
    rotary: RotaryTable | None
    num_text: int
    frame_tokens: int
    per_layer: None = None

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Where text ends and video begins."""
        return (self.num_text,)


class AdaptiveNorm(nnx.Module):
    """LayerNorm, then shift and scale from the timestep; also the gates.

    diffusers `CogVideoXLayerNormZero`: text and video rows have their own values.
    """

    def __init__(self, config: CogVideoXConfig, *, rngs: nnx.Rngs):
        self.linear = Linear(config.time_embed_dim, 6 * config.dim, rngs=rngs)
        self.norm = LayerNorm(
            config.dim, eps=config.norm_eps, affine=config.norm_elementwise_affine
        )

    def __call__(
        self,
        x: Float[Array, "batch tokens D"],
        conditioning: Conditioning,
        options: SiteOptions,
    ) -> tuple[Modulate, GatedResidual]:
        """What the timestep does before and after the linears that read x."""
        temb = jax.nn.silu(conditioning.temb)
        values = self.linear(temb, kernels=options.kernels).astype(jnp.float32)
        num_text = options.axes.here(conditioning.num_text)
        shift, scale, gate, text_shift, text_scale, text_gate = jnp.split(values, 6, -1)
        front = Modulate(
            *self.norm.affine(),
            self.norm.eps,
            shift,
            scale,
            text_shift,
            text_scale,
            num_text,
        )
        return front, GatedResidual(x, gate, text_gate, num_text)


class Attention(nnx.Module):
    """Joint self-attention over text and video tokens."""

    def __init__(self, config: CogVideoXConfig, *, rngs: nnx.Rngs):
        dim, bias = config.dim, config.attention_bias
        self.head_dim = config.attention_head_dim
        self.to_q = Linear(dim, dim, bias=bias, rngs=rngs)
        self.to_k = Linear(dim, dim, bias=bias, rngs=rngs)
        self.to_v = Linear(dim, dim, bias=bias, rngs=rngs)
        self.to_out = Linear(dim, dim, rngs=rngs)
        self.norm_q = LayerNorm(self.head_dim, eps=1e-6)
        self.norm_k = LayerNorm(self.head_dim, eps=1e-6)

    def mix(
        self,
        query: Array,
        key: Array,
        value: Array,
        conditioning: Conditioning,
        site: SiteRunner,
    ) -> Float[Array, "batch tokens D"]:
        """Norms, rotary embedding and attention over [batch, tokens, D] inputs."""
        given = conditioning.rotary
        table = None
        if given is not None:
            table = Rotary(given.cos, given.sin, conditioning.num_text)
        layout = TokenLayout(conditioning.frame_tokens, (0, conditioning.num_text))

        def run(query: Array, key: Array, value: Array, _: Any) -> Array:
            queries, keys = (
                Heads(x, "layer", None, *norm.affine(), norm.eps, table)
                for x, norm in ((query, self.norm_q), (key, self.norm_k))
            )
            return site.attend(queries, keys, value, layout)

        projections = [Projection(x) for x in (query, key, value)]
        return site.by_heads(projections, self.head_dim, run)


class FeedForward(nnx.Module):
    """Two linears with a tanh-approximated GELU between them."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.up = Linear(dim, 4 * dim, rngs=rngs)
        self.down = Linear(4 * dim, dim, rngs=rngs)


class CogVideoXBlock(nnx.Module):
    """One transformer block with four sites."""

    def __init__(self, config: CogVideoXConfig, *, rngs: nnx.Rngs):
        self.norm1 = AdaptiveNorm(config, rngs=rngs)
        self.attn1 = Attention(config, rngs=rngs)
        self.norm2 = AdaptiveNorm(config, rngs=rngs)
        self.ff = FeedForward(config.dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch tokens D"],
        conditioning: Conditioning,
        control: BlockControl | None = None,
        options: SiteOptions = SiteOptions(),  # noqa: B008 (frozen)
    ) -> tuple[Float[Array, "batch tokens D"], BlockStats]:
        """Runs the block.

        Args:
          x: residual stream.
          conditioning: timestep embedding and positions.
          control: the block's slice of the plan, or None for full precision.
          options: which branches the program contains.

        Returns:
          The new residual stream and the stats of the four sites.
        """
        site = SiteRunner(SITES, control, options)
        attn, ff = self.attn1, self.ff
        front, residual = self.norm1(x, conditioning, options)
        query, key, value = site(
            "attn_in", x, attn.to_q, attn.to_k, attn.to_v, front=front
        )
        mixed = attn.mix(query, key, value, conditioning, site)
        (x,) = site("attn_out", mixed, attn.to_out, residual=residual)
        front, residual = self.norm2(x, conditioning, options)
        (hidden,) = site("ff_in", x, ff.up, front=front)
        (x,) = site("ff_mid", hidden, ff.down, front=Gelu(), residual=residual)
        return x, site.stats()


class OutputNorm(nnx.Module):
    """LayerNorm with shift and scale (diffusers `AdaLayerNorm`)."""

    def __init__(self, config: CogVideoXConfig, *, rngs: nnx.Rngs):
        self.linear = Linear(config.time_embed_dim, 2 * config.dim, rngs=rngs)
        self.norm = LayerNorm(
            config.dim, eps=config.norm_eps, affine=config.norm_elementwise_affine
        )

    def __call__(
        self, x: Float[Array, "batch tokens D"], temb: Float[Array, "batch E"]
    ) -> Float[Array, "batch tokens D"]:
        values = self.linear(jax.nn.silu(temb)).astype(jnp.float32)
        shift, scale = jnp.split(values[:, None, :], 2, -1)
        y = layer_norm(x, *self.norm.affine(), eps=self.norm.eps)
        return (y * (1.0 + scale) + shift).astype(x.dtype)


class CogVideoXTransformer(DescribedNetwork):
    """The denoising network; parameters have diffusers' names."""

    class_name = "CogVideoXTransformer3DModel"
    config_class = CogVideoXConfig
    stack_names = ("transformer_blocks",)

    def __init__(self, config: CogVideoXConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = PatchEmbed(config, rngs=rngs)
        self.time_embedding = TimestepEmbedding(
            config.dim, config.time_embed_dim, rngs=rngs
        )
        ofs = config.ofs_embed_dim
        self.ofs_embedding = TimestepEmbedding(ofs, ofs, rngs=rngs) if ofs else None

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap
        def make_block(rngs: nnx.Rngs) -> CogVideoXBlock:
            return CogVideoXBlock(config, rngs=rngs)

        self.transformer_blocks = make_block(rngs)
        self.norm_final = LayerNorm(
            config.dim, eps=config.norm_eps, affine=config.norm_elementwise_affine
        )
        self.norm_out = OutputNorm(config, rngs=rngs)
        patch = config.patch_size**2 * (config.patch_size_t or 1)
        self.proj_out = Linear(config.dim, patch * config.out_channels, rngs=rngs)

    @staticmethod
    def weight_role(name: str) -> str | None:
        """How a parameter of this dotted path may be quantized.

        Returns:
          "site" for the weights of quantized linears, "small_batch" for those of
          linears that run on few rows (modulation, embeddings; weights only), None
          for everything that stays as it is.
        """
        if not name.endswith(".weight"):
            return None
        roles = (role for prefix, role in _ROLES if name.startswith(prefix))
        return next(roles, None)

    @classmethod
    def describe(cls, config: CogVideoXConfig) -> Description:
        """What follows from a configuration, without a network."""
        return describe(config)

    def prepare_prompt(
        self, given: PromptInputs, *, dtype: Any
    ) -> Float[Array, "rows T E"]:
        """The embeddings: nothing of the prompt can be computed once."""
        return given.text.astype(dtype)

    def embed(
        self,
        latents: Float[Array, "batch F C H W"],
        prompt: Float[Array, "batch T E"],
        timestep: Float[Array, "batch"],
        extra: Extra = NO_EXTRA,
    ) -> tuple[Float[Array, "batch tokens D"], Conditioning]:
        """Everything before the blocks; the dtype of `latents` is the compute dtype.

        Args:
          latents: noisy latents (with the extra channels of I2V models).
          prompt: embeddings.
          timestep: the timestep of each sample.
          extra: `ofs` for CogVideoX1.5 I2V.
        """
        config, dtype, ofs = self.config, latents.dtype, extra.ofs
        angles = {
            "flip_sin_to_cos": config.flip_sin_to_cos,
            "freq_shift": config.freq_shift,
        }
        embedding = sinusoidal_embedding(timestep, config.dim, **angles)
        temb = self.time_embedding(embedding.astype(dtype))
        if self.ofs_embedding is not None and config.ofs_embed_dim is not None:
            if ofs is None:
                raise ValueError(
                    "this model needs `ofs` (2.0 in the published sampler)"
                )
            embedding = sinusoidal_embedding(ofs, config.ofs_embed_dim, **angles)
            temb = temb + self.ofs_embedding(embedding.astype(dtype))
        x = self.patch_embed(latents, prompt.astype(dtype))
        rotary = None
        frames, height, width = config.token_grid(latents.shape[1], *latents.shape[3:])
        if config.use_rotary_positional_embeddings:
            rotary = rotary_3d(
                config.attention_head_dim,
                frames=frames,
                height=height,
                width=width,
                base=config.sample_grid,
                grid="resize_crop" if config.patch_size_t is None else "slice",
            )
        return x, Conditioning(temb, rotary, prompt.shape[1], height * width)

    def unembed(
        self,
        x: Float[Array, "batch tokens D"],
        conditioning: Conditioning,
        latent_shape: tuple[int, ...],
    ) -> Float[Array, "batch F C H W"]:
        """Everything after the blocks, for latents of shape [batch, F, C, H, W]."""
        config = self.config
        video = self.norm_final(x[:, conditioning.num_text :])
        video = self.proj_out(self.norm_out(video, conditioning.temb))
        batch, frames, _, height, width = latent_shape
        t, h, w = config.token_grid(frames, height, width)
        p, p_t = config.patch_size, config.patch_size_t or 1
        y = video.reshape(batch, t, h, w, config.out_channels, p_t, p, p)
        y = y.transpose(0, 1, 5, 4, 2, 6, 3, 7)
        return y.reshape(batch, frames, config.out_channels, height, width)

    def __call__(
        self,
        latents: Float[Array, "batch F C H W"],
        text: Float[Array, "batch T E"],
        timestep: Float[Array, "batch"],
        ofs: Float[Array, "batch"] | None = None,
    ) -> Float[Array, "batch F C H W"]:
        """One full-precision forward pass.

        Args:
          latents: noisy latents; their dtype is the compute dtype.
          text: prompt embeddings.
          timestep: diffusion timestep of each sample.
          ofs: the extra scalar of CogVideoX1.5 I2V.

        Returns:
          The model output (v-prediction), [batch, F, out_channels, H, W].
        """
        x, conditioning = self.embed(latents, text, timestep, Extra(ofs=ofs))
        graph, params = nnx.split(self.transformer_blocks)

        def body(x, layer):
            y, _ = nnx.merge(graph, layer)(x, conditioning)
            return y, None

        x, _ = jax.lax.scan(body, x, params)
        return self.unembed(x, conditioning, latents.shape)
