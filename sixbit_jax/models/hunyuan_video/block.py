"""HunyuanVideo's blocks: dual ones with a stream of text, then single ones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from pallas_kernels.norm_rope import Heads, Rotary, norm_rope
from sixbit_jax.models.blocks import BlockControl, BlockStats, SiteRunner
from sixbit_jax.models.hunyuan_video.config import HunyuanVideoConfig
from sixbit_jax.models.hunyuan_video.description import DUAL_SITES, SINGLE_SITES
from sixbit_jax.nn.fusion import GatedResidual, Gelu, Modulate
from sixbit_jax.nn.linear import Linear
from sixbit_jax.nn.rope import RotaryTable
from sixbit_jax.nn.site import SiteOptions
from sixbit_jax.nn.sparse_attention import TokenLayout

EPS = 1e-6
"""Of every norm."""


class Conditioning(NamedTuple):
    """What every block reads besides the residual stream.

    Attributes:
      temb: embedding of timestep, guidance scale and pooled prompt.
      clean_temb: the same for the first `num_clean` tokens, those of a given first
        frame, or None.
      num_clean: how many tokens those are. Static.
      num_video: video tokens; text tokens come after them. Static.
      frame_tokens: tokens of one frame. Static.
      key_lengths: tokens that are no padding, [batch].
      rotary: table of all tokens. Constant.
      per_layer: layers read nothing on their own.
    """

    temb: Float[Array, "batch D"]
    clean_temb: Float[Array, "batch D"] | None
    num_clean: int
    num_video: int
    frame_tokens: int
    key_lengths: Int[Array, "batch"]
    rotary: RotaryTable
    per_layer: None = None

    @property
    def layout(self) -> TokenLayout:
        """Where text and frames are among the tokens."""
        return TokenLayout(
            self.frame_tokens, (self.num_video, self.rotary.cos.shape[0])
        )


class _Part(NamedTuple):
    """Shift, scale and gate of a site pair, and of the first clean tokens; float32."""

    shift: Float[Array, "batch D"]
    scale: Float[Array, "batch D"]
    gate: Float[Array, "batch D"]
    clean: tuple[Array, Array, Array]
    num_clean: int

    def front(self) -> Modulate:
        """What is done with the residual stream before the linears."""
        shift, scale, _ = self.clean
        return Modulate(
            None, None, EPS, self.shift, self.scale, shift, scale, self.num_clean
        )

    def residual(self, x: Float[Array, "batch tokens D"]) -> GatedResidual:
        """What is done with their result."""
        return GatedResidual(x, self.gate, self.clean[2], self.num_clean)


class AdaptiveNorm(nnx.Module):
    """Shift, scale and gate of each pair of sites, from the conditioning.

    diffusers `AdaLayerNormZero` (two pairs), `AdaLayerNormZeroSingle` (one) and their
    variants for replaced tokens. The norms have no parameters.
    """

    def __init__(self, dim: int, pairs: int, *, rngs: nnx.Rngs):
        self.pairs = pairs
        self.linear = Linear(dim, 3 * pairs * dim, rngs=rngs)

    def __call__(
        self, conditioning: Conditioning, *, kernels: bool, text: bool = False
    ) -> list[_Part]:
        """One `_Part` per pair of sites; text has no clean tokens."""

        def values(temb: Array) -> list[Array]:
            made = self.linear(jax.nn.silu(temb), kernels=kernels)
            return jnp.split(made.astype(jnp.float32), 3 * self.pairs, -1)

        found = values(conditioning.temb)
        clean, num_clean = found, 0
        if conditioning.clean_temb is not None and not text:
            clean, num_clean = values(conditioning.clean_temb), conditioning.num_clean
        return [
            _Part(*found[i : i + 3], tuple(clean[i : i + 3]), num_clean)
            for i in range(0, 3 * self.pairs, 3)
        ]


class HeadNorm(nnx.Module):
    """The weight of an RMS norm over the channels of a head."""

    def __init__(self, head_dim: int):
        self.weight = nnx.Param(jnp.ones((head_dim,)))

    def heads(
        self, x: Float[Array, "batch tokens D"], rotary: RotaryTable | None
    ) -> Heads:
        """Queries or keys with what is to be done with them."""
        weight = self.weight[...]
        table = None if rotary is None else Rotary(rotary.cos, rotary.sin)
        split = x.reshape(*x.shape[:2], -1, weight.shape[-1])
        return Heads(split, "rms", weight=weight, eps=EPS, rotary=table)


class JointAttention(nnx.Module):
    """Attention over video and text, whose projections are different weights."""

    def __init__(self, config: HunyuanVideoConfig, *, rngs: nnx.Rngs):
        dim = config.dim
        self.to_q = Linear(dim, dim, rngs=rngs)
        self.to_k = Linear(dim, dim, rngs=rngs)
        self.to_v = Linear(dim, dim, rngs=rngs)
        self.to_out = Linear(dim, dim, rngs=rngs)
        self.add_q_proj = Linear(dim, dim, rngs=rngs)
        self.add_k_proj = Linear(dim, dim, rngs=rngs)
        self.add_v_proj = Linear(dim, dim, rngs=rngs)
        self.to_add_out = Linear(dim, dim, rngs=rngs)
        self.norm_q = HeadNorm(config.attention_head_dim)
        self.norm_k = HeadNorm(config.attention_head_dim)
        self.norm_added_q = HeadNorm(config.attention_head_dim)
        self.norm_added_k = HeadNorm(config.attention_head_dim)

    def mix(
        self,
        video: tuple[Array, Array, Array],
        text: tuple[Array, Array, Array],
        conditioning: Conditioning,
        site: SiteRunner,
        implementation: str | None,
    ) -> tuple[Float[Array, "batch tokens D"], Float[Array, "batch T D"]]:
        """Norms, rotary embedding and attention of [batch, tokens, D] projections."""
        count = conditioning.num_video
        table = RotaryTable(*(part[:count] for part in conditioning.rotary))
        joined = []
        for x, y, norm, text_norm in (
            (video[0], text[0], self.norm_q, self.norm_added_q),
            (video[1], text[1], self.norm_k, self.norm_added_k),
        ):
            parts = (norm.heads(x, table), text_norm.heads(y, None))
            made = [norm_rope(h, implementation=implementation) for h in parts]
            joined.append(jnp.concatenate(made, 1))
        value = jnp.concatenate([video[2], text[2]], 1)
        mixed = site.attend(
            *map(Heads, joined),
            value.reshape(joined[0].shape),
            conditioning.layout,
            key_lengths=conditioning.key_lengths,
        )
        mixed = mixed.reshape(value.shape)
        return mixed[:, :count], mixed[:, count:]


class FeedForward(nnx.Module):
    """Two linears with a tanh-approximated GELU between them."""

    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs):
        self.up = Linear(dim, hidden, rngs=rngs)
        self.down = Linear(hidden, dim, rngs=rngs)


class DualBlock(nnx.Module):
    """A block where video and text meet in attention only; eight sites."""

    def __init__(self, config: HunyuanVideoConfig, *, rngs: nnx.Rngs):
        dim, hidden = config.dim, config.hidden
        self.norm1 = AdaptiveNorm(dim, 2, rngs=rngs)
        self.norm1_context = AdaptiveNorm(dim, 2, rngs=rngs)
        self.attn = JointAttention(config, rngs=rngs)
        self.ff = FeedForward(dim, hidden, rngs=rngs)
        self.ff_context = FeedForward(dim, hidden, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch tokens D"],
        conditioning: Conditioning,
        control: BlockControl | None = None,
        options: SiteOptions = SiteOptions(),  # noqa: B008 (frozen)
    ) -> tuple[Float[Array, "batch tokens D"], BlockStats]:
        """Runs the block.

        Args:
          x: residual stream, video tokens first.
          conditioning: embeddings, positions and lengths.
          control: the block's slice of the plan, or None for full precision.
          options: which branches the program contains.

        Returns:
          The new residual stream and the stats of the eight sites.
        """
        site = SiteRunner(DUAL_SITES, control, options)
        attn, ff, other = self.attn, self.ff, self.ff_context
        count, kernels = conditioning.num_video, options.kernels
        video, text = x[:, :count], x[:, count:]
        before, after = self.norm1(conditioning, kernels=kernels)
        text_before, text_after = self.norm1_context(
            conditioning, kernels=kernels, text=True
        )

        projected = site(
            "attn_in", video, attn.to_q, attn.to_k, attn.to_v, front=before.front()
        )
        text_projected = site(
            "text_attn_in",
            text,
            *(attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
            front=text_before.front(),
        )
        mixed, text_mixed = attn.mix(
            projected, text_projected, conditioning, site, options.implementation
        )
        (video,) = site("attn_out", mixed, attn.to_out, residual=before.residual(video))
        (text,) = site(
            "text_attn_out",
            text_mixed,
            attn.to_add_out,
            residual=text_before.residual(text),
        )

        (hidden,) = site("ff_in", video, ff.up, front=after.front())
        (video,) = site(
            "ff_mid", hidden, ff.down, front=Gelu(), residual=after.residual(video)
        )
        (hidden,) = site("text_ff_in", text, other.up, front=text_after.front())
        (text,) = site(
            "text_ff_mid",
            hidden,
            other.down,
            front=Gelu(),
            residual=text_after.residual(text),
        )
        return jnp.concatenate([video, text], 1), site.stats()


class SingleAttention(nnx.Module):
    """Attention over video and text, whose projections are the same weights."""

    def __init__(self, config: HunyuanVideoConfig, *, rngs: nnx.Rngs):
        dim = config.dim
        self.to_q = Linear(dim, dim, rngs=rngs)
        self.to_k = Linear(dim, dim, rngs=rngs)
        self.to_v = Linear(dim, dim, rngs=rngs)
        self.norm_q = HeadNorm(config.attention_head_dim)
        self.norm_k = HeadNorm(config.attention_head_dim)

    def mix(
        self,
        query: Float[Array, "batch tokens D"],
        key: Float[Array, "batch tokens D"],
        value: Float[Array, "batch tokens D"],
        conditioning: Conditioning,
        site: SiteRunner,
    ) -> Float[Array, "batch tokens D"]:
        """Norms, rotary embedding and attention."""
        queries = self.norm_q.heads(query, conditioning.rotary)
        mixed = site.attend(
            queries,
            self.norm_k.heads(key, conditioning.rotary),
            value.reshape(queries.x.shape),
            conditioning.layout,
            key_lengths=conditioning.key_lengths,
        )
        return mixed.reshape(value.shape)


class SingleBlock(nnx.Module):
    """A block where attention and feed-forward read the same activation; two sites."""

    def __init__(self, config: HunyuanVideoConfig, *, rngs: nnx.Rngs):
        dim, hidden = config.dim, config.hidden
        self.norm = AdaptiveNorm(dim, 1, rngs=rngs)
        self.attn = SingleAttention(config, rngs=rngs)
        self.proj_mlp = Linear(dim, hidden, rngs=rngs)
        self.proj_out = Linear(dim + hidden, dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch tokens D"],
        conditioning: Conditioning,
        control: BlockControl | None = None,
        options: SiteOptions = SiteOptions(),  # noqa: B008 (frozen)
    ) -> tuple[Float[Array, "batch tokens D"], BlockStats]:
        """Runs the block.

        Args:
          x: residual stream, video tokens first.
          conditioning: embeddings, positions and lengths.
          control: the block's slice of the plan, or None for full precision.
          options: which branches the program contains.

        Returns:
          The new residual stream and the stats of the two sites.
        """
        site = SiteRunner(SINGLE_SITES, control, options)
        attn = self.attn
        (part,) = self.norm(conditioning, kernels=options.kernels)
        query, key, value, hidden = site(
            "fused_in",
            x,
            *(attn.to_q, attn.to_k, attn.to_v, self.proj_mlp),
            front=part.front(),
        )
        mixed = attn.mix(query, key, value, conditioning, site)
        joined = jnp.concatenate([mixed, Gelu()(hidden)], -1)
        (x,) = site("fused_out", joined, self.proj_out, residual=part.residual(x))
        return x, site.stats()


__all__ = ["EPS", "Conditioning", "DualBlock", "SingleBlock"]
