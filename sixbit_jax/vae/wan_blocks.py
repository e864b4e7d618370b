"""Blocks of the Wan VAE: norms, residual blocks, attention, shortcuts.

One latent frame stands for `group` frames at a level: 4 at the video's, 1 in the
middle. The first latent frame stands for one only. So that every chunk is the same
program, it stands for a whole group here too, of which the last frame counts: the
others come before the video, and whatever looks back in time sees zeros there.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from sixbit_jax.vae.causal_conv import Conv2d, Method, State, Stream
from sixbit_jax.vae.wan_conv import WanConv

# Rows of queries that attention handles at once: what bounds the logits' memory.
_QUERIES = 4096


class WanStream(Stream):
    """A stream that knows which frames of a chunk come before the video.

    Attributes:
      begins: whether the chunk begins the video; a traced scalar.
    """

    def __init__(
        self,
        state: State | None,
        begins: Bool[Array, ""],
        *,
        method: Method = "stacked",
    ):
        super().__init__(state, method=method)
        self.begins = begins

    def up_to(self, frames: int, count: int) -> Bool[Array, "frames 1 1 1"]:
        """Which of a chunk's frames are the video's first `count` ones; none later."""
        early = jnp.arange(frames) < count
        return (early & self.begins)[:, None, None, None]

    def clear(
        self, x: Float[Array, "batch F H W C"], count: int
    ) -> Float[Array, "batch F H W C"]:
        """Zeros in the first `count` frames of the chunk that begins the video."""
        if count == 0:
            return x
        return jnp.where(self.up_to(x.shape[1], count), jnp.zeros((), x.dtype), x)


class RMSNorm(nnx.Module):
    """Scales every pixel's channels to a root mean square of `gamma`."""

    def __init__(self, dim: int):
        self.gamma = nnx.Param(jnp.ones((dim,)))

    def __call__(
        self, x: Float[Array, "*batch C"], *, silu: bool = False
    ) -> Float[Array, "*batch C"]:
        """Normalizes, then SiLU if asked, in float32; the result has the dtype of x.

        One reduction and what follows from it, so that XLA makes one pass of it.
        """
        wide = x.astype(jnp.float32)
        length = jnp.sqrt(jnp.sum(wide * wide, -1, keepdims=True))
        scale = math.sqrt(x.shape[-1]) / jnp.maximum(length, 1e-12)
        y = wide * scale * self.gamma[...].astype(jnp.float32)
        return (jax.nn.silu(y) if silu else y).astype(x.dtype)


class ResidualBlock(nnx.Module):
    """Twice norm, SiLU and a causal convolution, added to the input."""

    def __init__(self, in_dim: int, out_dim: int, group: int, *, rngs: nnx.Rngs):
        self.group = group
        self.norm1 = RMSNorm(in_dim)
        self.conv1 = WanConv(in_dim, out_dim, 3, rngs=rngs)
        self.norm2 = RMSNorm(out_dim)
        self.conv2 = WanConv(out_dim, out_dim, 3, rngs=rngs)
        self.conv_shortcut = (
            WanConv(in_dim, out_dim, 1, rngs=rngs) if in_dim != out_dim else None
        )

    def __call__(
        self, x: Float[Array, "batch F H W C"], stream: WanStream
    ) -> Float[Array, "batch F H W D"]:
        """One chunk through the block, in the dtype of x."""
        rest = x if self.conv_shortcut is None else self.conv_shortcut(x, stream)
        before = self.group - 1
        x = self.conv1(stream.clear(self.norm1(x, silu=True), before), stream)
        x = self.conv2(stream.clear(self.norm2(x, silu=True), before), stream)
        return x + rest


class AttentionBlock(nnx.Module):
    """Self-attention of one head among the pixels of a frame."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(dim)
        self.to_qkv = Conv2d(dim, 3 * dim, 1, rngs=rngs)
        self.proj = Conv2d(dim, dim, 1, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch F H W C"]
    ) -> Float[Array, "batch F H W C"]:
        """Adds what each pixel finds; frames do not see each other."""
        dim = x.shape[-1]
        qkv = self.to_qkv(self.norm(x)).reshape(-1, x.shape[2] * x.shape[3], 3 * dim)
        found = jax.lax.map(lambda frame: _attend(*jnp.split(frame, 3, -1)), qkv)
        return x + self.proj(found.reshape(x.shape))


def _attend(
    queries: Float[Array, "T C"], keys: Float[Array, "T C"], values: Float[Array, "T C"]
) -> Float[Array, "T C"]:
    def rows(query: Float[Array, "C"]) -> Float[Array, "C"]:
        logits = jnp.einsum("c,tc->t", query, keys, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits / math.sqrt(query.shape[-1]))
        return weights.astype(values.dtype) @ values

    return jax.lax.map(rows, queries, batch_size=min(_QUERIES, queries.shape[0]))


class MidBlock(nnx.Module):
    """A residual block, attention, a residual block; at the latents' frame rate."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.resnets = nnx.List([ResidualBlock(dim, dim, 1, rngs=rngs) for _ in "12"])
        self.attentions = nnx.List([AttentionBlock(dim, rngs=rngs)])

    def __call__(
        self, x: Float[Array, "batch F H W C"], stream: WanStream
    ) -> Float[Array, "batch F H W C"]:
        """One chunk through the block."""
        x = self.resnets[0](x, stream)
        return self.resnets[1](self.attentions[0](x), stream)
