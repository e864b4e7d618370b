"""One block of a Wan transformer: self-attention, cross-attention, feed-forward."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.models.blocks import BlockControl, BlockStats, SiteRunner
from sixbit_jax.models.wan.attention import (
    CrossAttention,
    SelfAttention,
)
from sixbit_jax.models.wan.config import WanConfig
from sixbit_jax.models.wan.description import SITES
from sixbit_jax.nn.fusion import Front, GatedResidual, Gelu, Identity, Modulate
from sixbit_jax.nn.linear import Linear
from sixbit_jax.nn.norms import LayerNorm, layer_norm
from sixbit_jax.nn.rope import RotaryTable
from sixbit_jax.nn.site import SiteOptions


class Conditioning(NamedTuple):
    """What every block reads besides the residual stream.

    Attributes:
      temb: timestep embedding, [batch, D], or [batch, tokens, D] where each token has
        a timestep of its own (TI2V).
      modulation: shift, scale and gate of self-attention, then of the feed-forward,
        before the block's own table: [batch, 6, D] or [batch, tokens, 6, D].
      clean_temb, clean_modulation: the same at timestep 0, for the first `num_clean`
        tokens, or None.
      num_clean: how many tokens those are. Static.
      rotary: table of the video tokens. Constant.
      frame_tokens: number of tokens of a frame. Static.
      per_layer: keys and values of the prompt by stack, with a leading layer axis; one
        layer's slice of them inside a block.
    """

    temb: Float[Array, "batch *tokens D"]
    modulation: Float[Array, "batch *tokens 6 D"]
    clean_temb: Float[Array, "batch D"] | None
    clean_modulation: Float[Array, "batch 6 D"] | None
    num_clean: int
    rotary: RotaryTable
    frame_tokens: int
    per_layer: Any

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Where clean frames end."""
        return (self.num_clean,)


class _Modulation(NamedTuple):
    """Shift, scale and gate of one half of a block, float32.

    One value per row of the batch goes into the sites' fused norms and epilogues (two
    values, where the first tokens are clean); one per token does not fit there and is
    applied before and after the sites.
    """

    shift: Float[Array, "batch *tokens D"]
    scale: Float[Array, "batch *tokens D"]
    gate: Float[Array, "batch *tokens D"]
    clean: Float[Array, "batch 3 D"] | None
    num_clean: int

    def front(self, x: Array, eps: float) -> tuple[Array, Front]:
        """What the site reads, and the front that makes its activation."""
        if self.shift.ndim == 3:
            y = layer_norm(x, eps=eps) * (1.0 + self.scale) + self.shift
            return y.astype(x.dtype), Identity()
        first = (self.shift, self.scale)
        if self.clean is not None:
            first = (self.clean[:, 0], self.clean[:, 1])
        values = (self.shift, self.scale, *first, self.num_clean)
        return x, Modulate(None, None, eps, *values)

    def add(self, x: Array, run: Callable[[GatedResidual | None], Array]) -> Array:
        """x + gate * y, where `run` makes y or, given a residual, the whole sum."""
        if self.gate.ndim == 3:
            y = run(None).astype(jnp.float32)
            return (x.astype(jnp.float32) + self.gate * y).astype(x.dtype)
        first = self.gate if self.clean is None else self.clean[:, 2]
        return run(GatedResidual(x, self.gate, first, self.num_clean))


class FeedForward(nnx.Module):
    """Two linears with a tanh-approximated GELU between them."""

    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs):
        self.up = Linear(dim, hidden, rngs=rngs)
        self.down = Linear(hidden, dim, rngs=rngs)


class WanBlock(nnx.Module):
    """One transformer block with six sites."""

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
        dim = config.dim
        self.eps = config.eps
        self.attn1 = SelfAttention(config, rngs=rngs)
        self.attn2 = CrossAttention(config, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=config.eps) if config.cross_attn_norm else None
        self.ffn = FeedForward(dim, config.ffn_dim, rngs=rngs)
        self.scale_shift_table = nnx.Param(
            jax.random.normal(rngs.params(), (1, 6, dim)) / math.sqrt(dim)
        )

    def _modulations(
        self, conditioning: Conditioning, num_clean: int
    ) -> list[_Modulation]:
        table = self.scale_shift_table[...].astype(jnp.float32)
        values = table + conditioning.modulation.astype(jnp.float32)
        clean = conditioning.clean_modulation
        if clean is not None:
            clean = table + clean.astype(jnp.float32)
        return [
            _Modulation(
                shift=values[..., start, :],
                scale=values[..., start + 1, :],
                gate=values[..., start + 2, :],
                clean=None if clean is None else clean[:, start : start + 3],
                num_clean=num_clean,
            )
            for start in (0, 3)
        ]

    def _cross_front(self, x: Array) -> Front:
        if self.norm2 is None:
            return Identity()
        zero = jnp.zeros((x.shape[0], x.shape[2]), jnp.float32)
        return Modulate(*self.norm2.affine(), self.eps, zero, zero, zero, zero, 0)

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
          conditioning: timestep modulation, positions, and this layer's keys and
            values of the prompt.
          control: the block's slice of the plan, or None for full precision.
          options: which branches the program contains.

        Returns:
          The new residual stream and the stats of the six sites.
        """
        site = SiteRunner(SITES, control, options)
        attn, cross, ffn = self.attn1, self.attn2, self.ffn
        attn_modulation, ffn_modulation = self._modulations(
            conditioning, site.rows(conditioning.num_clean)
        )

        y, front = attn_modulation.front(x, self.eps)
        query, key, value = site(
            "attn_in", y, attn.to_q, attn.to_k, attn.to_v, front=front
        )
        mixed = attn.mix(
            query, key, value, conditioning.rotary, conditioning.frame_tokens, site
        )
        x = attn_modulation.add(
            x,
            lambda residual: site("attn_out", mixed, attn.to_out, residual=residual)[0],
        )

        (query,) = site("cross_in", x, cross.to_q, front=self._cross_front(x))
        mixed = cross.mix(query, conditioning.per_layer, options)
        one = jnp.ones((x.shape[0], x.shape[2]), jnp.float32)
        (x,) = site(
            "cross_out", mixed, cross.to_out, residual=GatedResidual(x, one, one, 0)
        )

        y, front = ffn_modulation.front(x, self.eps)
        (hidden,) = site("ff_in", y, ffn.up, front=front)
        x = ffn_modulation.add(
            x,
            lambda residual: site(
                "ff_mid", hidden, ffn.down, front=Gelu(), residual=residual
            )[0],
        )
        return x, site.stats()
