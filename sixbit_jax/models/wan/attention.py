"""Wan's self-attention and cross-attention; linears are run by the block's sites."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from pallas_kernels.norm_rope import Heads, Rotary
from sixbit_jax.models.blocks import Projection, SiteRunner
from sixbit_jax.models.wan.config import WanConfig
from sixbit_jax.nn.attention import attention
from sixbit_jax.nn.linear import Linear
from sixbit_jax.nn.rope import RotaryTable
from sixbit_jax.nn.site import SiteOptions
from sixbit_jax.nn.sparse_attention import TokenLayout


class TextKeysValues(NamedTuple):
    """What cross-attention reads: depends on the prompt only, not on the step.

    Attributes:
      key, value: those of the text tokens; keys are normed.
      image_key, image_value: those of the image tokens (Wan2.1 I2V), or None.
    """

    key: Float[Array, "*layers batch T D"]
    value: Float[Array, "*layers batch T D"]
    image_key: Float[Array, "*layers batch I D"] | None = None
    image_value: Float[Array, "*layers batch I D"] | None = None


class RMSNorm(nnx.Module):
    """x / rms(x) * weight over the last axis, computed in float32."""

    def __init__(self, dim: int, *, eps: float):
        self.eps = eps
        self.weight = nnx.Param(jnp.ones((dim,)))

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalizes x; the result has the dtype of x."""
        y = x.astype(jnp.float32) * self.factor(x)[..., None]
        return (y * self.weight[...].astype(jnp.float32)).astype(x.dtype)

    def factor(self, x: Float[Array, "*batch D"]) -> Float32[Array, "*batch"]:
        """1 / rms of every row."""
        square = jnp.square(x.astype(jnp.float32)).mean(-1)
        return jax.lax.rsqrt(square + self.eps)


class Attention(nnx.Module):
    """Projections and full-width RMS norms shared by both kinds of attention."""

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
        dim = config.dim
        self.head_dim = config.attention_head_dim
        self.to_q = Linear(dim, dim, rngs=rngs)
        self.to_k = Linear(dim, dim, rngs=rngs)
        self.to_v = Linear(dim, dim, rngs=rngs)
        self.to_out = Linear(dim, dim, rngs=rngs)
        self.norm_q = RMSNorm(dim, eps=config.eps)
        self.norm_k = RMSNorm(dim, eps=config.eps)

    def _heads(self, x: Float[Array, "batch tokens D"]) -> Array:
        return x.reshape(*x.shape[:2], -1, self.head_dim)


class SelfAttention(Attention):
    """Attention among the video tokens."""

    def mix(
        self,
        query: Float[Array, "batch tokens D"],
        key: Float[Array, "batch tokens D"],
        value: Float[Array, "batch tokens D"],
        rotary: RotaryTable,
        frame_tokens: int,
        site: SiteRunner,
    ) -> Float[Array, "batch tokens D"]:
        """Norms, rotary embedding and attention."""
        table = Rotary(rotary.cos, rotary.sin)
        shape = (-1, self.head_dim)
        # The norm is over all heads: its factors come from where all of them are.
        factors = jnp.stack([self.norm_q.factor(query), self.norm_k.factor(key)], -1)
        factors = site.all_tokens(factors)
        layout = TokenLayout(frame_tokens)

        def run(query: Array, key: Array, value: Array, own: Any) -> Array:
            queries, keys = (
                Heads(
                    part,
                    row_factor=factors[..., i],
                    weight=own(norm.weight[...].reshape(shape)),
                    rotary=table,
                )
                for i, (part, norm) in enumerate(
                    ((query, self.norm_q), (key, self.norm_k))
                )
            )
            return site.attend(queries, keys, value, layout)

        projections = [Projection(x) for x in (query, key, value)]
        return site.by_heads(projections, self.head_dim, run)


class CrossAttention(Attention):
    """Attention of the video tokens to the text, and to an image where there is one."""

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        added, dim = config.added_kv_proj_dim, config.dim
        image = added is not None
        self.add_k_proj = Linear(added, dim, rngs=rngs) if image else None
        self.add_v_proj = Linear(added, dim, rngs=rngs) if image else None
        self.norm_added_k = RMSNorm(dim, eps=config.eps) if image else None

    def keys_values(
        self, text: Float[Array, "batch T D"], image: Float[Array, "batch I D"] | None
    ) -> TextKeysValues:
        """Keys and values of embedded text and image tokens."""
        found = TextKeysValues(self.norm_k(self.to_k(text)), self.to_v(text))
        if image is None:
            return found
        key, value, norm = self.add_k_proj, self.add_v_proj, self.norm_added_k
        assert key is not None
        assert value is not None
        assert norm is not None
        return found._replace(image_key=norm(key(image)), image_value=value(image))

    def mix(
        self,
        query: Float[Array, "batch tokens D"],
        context: TextKeysValues,
        options: SiteOptions,
    ) -> Float[Array, "batch tokens D"]:
        """Attention to the text plus attention to the image.

        There are few keys: attention stays dense, its scores in 16 bits, whatever
        `options` and the plan say.
        """
        heads = self._heads(self.norm_q(query))

        def read(key: Array, value: Array) -> Array:
            keys, values = self._heads(key), self._heads(value)
            mixed = attention(heads, keys, values, kernels=options.kernels)
            return mixed.reshape(query.shape)

        mixed = read(context.key, context.value)
        if context.image_key is not None and context.image_value is not None:
            mixed = mixed + read(context.image_key, context.image_value)
        return mixed
