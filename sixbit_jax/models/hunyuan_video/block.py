"""HunyuanVideo's blocks: dual ones with a stream of text, then single ones."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from pallas_kernels.norm_rope import Heads, Rotary, norm_rope
from sixbit_jax.models.blocks import BlockControl, BlockStats, Projection, SiteRunner
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
    def boundaries(self) -> tuple[int, ...]:
        """Where clean frames end, and where text begins."""
        return (self.num_clean, self.num_video)

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
        self,
        conditioning: Conditioning,
        options: SiteOptions,
        *,
        text: bool = False,
    ) -> list[_Part]:
        """One `_Part` per pair of sites; text has no clean tokens."""

        def values(temb: Array) -> list[Array]:
            made = self.linear(jax.nn.silu(temb), kernels=options.kernels)
            return jnp.split(made.astype(jnp.float32), 3 * self.pairs, -1)

        found = values(conditioning.temb)
        clean, num_clean = found, 0
        if conditioning.clean_temb is not None and not text:
            clean = values(conditioning.clean_temb)
            num_clean = options.axes.here(conditioning.num_clean)
        return [
            _Part(
                found[i],
                found[i + 1],
                found[i + 2],
                (clean[i], clean[i + 1], clean[i + 2]),
                num_clean,
            )
            for i in range(0, 3 * self.pairs, 3)
        ]


class HeadNorm(nnx.Module):
    """The weight of an RMS norm over the channels of a head."""

    def __init__(self, head_dim: int):
        self.weight = nnx.Param(jnp.ones((head_dim,)))

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.weight[...].shape[-1]

    def heads(
        self,
        x: Float[Array, "batch tokens heads head_dim"],
        rotary: RotaryTable | None,
    ) -> Heads:
        """Queries or keys with what is to be done with them."""
        weight = self.weight[...]
        table = None if rotary is None else Rotary(rotary.cos, rotary.sin)
        return Heads(x, "rms", weight=weight, eps=EPS, rotary=table)


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
        video: tuple[Array, ...],
        text: tuple[Array, ...],
        conditioning: Conditioning,
        site: SiteRunner,
        implementation: str | None,
    ) -> tuple[Float[Array, "batch tokens D"], Float[Array, "batch T D"]]:
        """Norms, rotary embedding and attention of projections.

        Args:
          video, text: queries, keys and values, [batch, tokens, D].
          conditioning: positions and lengths.
          site: runs attention by the plan.
          implementation: what the ops are asked for.
        """
        count, total = conditioning.layout.text
        rows = site.rows(count)
        table = RotaryTable(*(part[:count] for part in conditioning.rotary))

        def run(*parts: Any) -> Array:
            query, text_query, key, text_key, value, text_value, _ = parts
            joined: list[Heads] = []
            for x, y, norm, text_norm in (
                (query, text_query, self.norm_q, self.norm_added_q),
                (key, text_key, self.norm_k, self.norm_added_k),
            ):
                halves = (norm.heads(x, table), text_norm.heads(y, None))
                made = [norm_rope(h, implementation=implementation) for h in halves]
                joined.append(Heads(jnp.concatenate(made, 1)))
            return site.attend(
                joined[0],
                joined[1],
                jnp.concatenate([value, text_value], 1),
                conditioning.layout,
                key_lengths=conditioning.key_lengths,
            )

        projections = [
            Projection(x, tokens)
            for pair in zip(video, text, strict=True)
            for x, tokens in zip(pair, ((0, count), (count, total)), strict=True)
        ]
        mixed = site.by_heads(projections, self.norm_q.head_dim, run)
        return mixed[:, :rows], mixed[:, rows:]


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
        count, total = conditioning.layout.text
        of_video, of_text, rows = (0, count), (count, total), site.rows(count)
        video, text = x[:, :rows], x[:, rows:]
        before, after = self.norm1(conditioning, options)
        text_before, text_after = self.norm1_context(conditioning, options, text=True)

        projected = site(
            "attn_in",
            video,
            *(attn.to_q, attn.to_k, attn.to_v),
            front=before.front(),
            tokens=of_video,
        )
        text_projected = site(
            "text_attn_in",
            text,
            *(attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
            front=text_before.front(),
            tokens=of_text,
        )
        mixed, text_mixed = attn.mix(
            projected, text_projected, conditioning, site, options.implementation
        )
        (video,) = site(
            "attn_out",
            mixed,
            attn.to_out,
            residual=before.residual(video),
            tokens=of_video,
        )
        (text,) = site(
            "text_attn_out",
            text_mixed,
            attn.to_add_out,
            residual=text_before.residual(text),
            tokens=of_text,
        )

        (hidden,) = site("ff_in", video, ff.up, front=after.front(), tokens=of_video)
        (video,) = site(
            "ff_mid",
            hidden,
            ff.down,
            front=Gelu(),
            residual=after.residual(video),
            tokens=of_video,
        )
        (hidden,) = site(
            "text_ff_in", text, other.up, front=text_after.front(), tokens=of_text
        )
        (text,) = site(
            "text_ff_mid",
            hidden,
            other.down,
            front=Gelu(),
            residual=text_after.residual(text),
            tokens=of_text,
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

        def run(query: Array, key: Array, value: Array, _: Any) -> Array:
            return site.attend(
                self.norm_q.heads(query, conditioning.rotary),
                self.norm_k.heads(key, conditioning.rotary),
                value,
                conditioning.layout,
                key_lengths=conditioning.key_lengths,
            )

        projections = [Projection(x) for x in (query, key, value)]
        return site.by_heads(projections, self.norm_q.head_dim, run)


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
        (part,) = self.norm(conditioning, options)
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
