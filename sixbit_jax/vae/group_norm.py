"""Group normalization of video activations, with what follows it in one pass.

Two passes over the activation, which is as large as it gets in a video autoencoder:
one that reads it for the sums, one that reads it and writes
`silu((x - mean) / std * scale + offset)`. Scale and offset stand per channel, or per
latent pixel (CogVideoX's decoder), where they are made at the size of the latents and
only read at the size of the activation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from pallas_kernels.group_norm import channel_moments
from sixbit_jax.vae.frame_groups import Before, Groups, starts


class Statistics(NamedTuple):
    """Of every group, spread over its channels.

    Attributes:
      mean: float32 [batch, C].
      scale: 1 / sqrt(variance + eps), float32 [batch, C].
    """

    mean: Float[Array, "batch C"]
    scale: Float[Array, "batch C"]


def group_statistics(
    x: Float[Array, "batch F H W C"] | Sequence[Array],
    groups: int,
    *,
    eps: float,
    kernels: bool = False,
) -> Statistics:
    """Mean and 1 / standard deviation per sample and group of channels, in float32.

    One pass: sum and sum of squares of the distance to a value of the group itself
    (the mean of its first pixel), because a plain sum of squares cancels where the
    mean is large against the deviation.

    Args:
      x: activations of any float dtype, or parts of them along the frames.
      groups: of neighbouring channels.
      eps: added to the variance.
      kernels: whether a GPU kernel may take the sums.

    Returns:
      The statistics, repeated over the channels of each group.
    """
    parts = (x,) if isinstance(x, jax.Array) else tuple(x)
    batch, channels = parts[0].shape[0], parts[0].shape[-1]
    size = channels // groups

    def over_group(values: Array) -> Array:
        mean = values.reshape(batch, groups, size).mean(-1)
        return jnp.repeat(mean, size, axis=-1)

    pivot = over_group(parts[0][:, 0, 0, 0].astype(jnp.float32))
    # Per channel first: the channels are the minor axis and stay where they are.
    sums = [
        channel_moments(
            part.reshape(batch, -1, channels),
            pivot,
            implementation=None if kernels else "reference",
        )
        for part in parts
    ]
    total = jnp.asarray(sum(part.total for part in sums))
    squares = jnp.asarray(sum(part.squares for part in sums))
    pixels = sum(part.size for part in parts) // (batch * channels)
    mean, square = over_group(total / pixels), over_group(squares / pixels)
    variance = jnp.maximum(square - jnp.square(mean), 0.0)
    return Statistics(pivot + mean, jax.lax.rsqrt(variance + eps))


class GroupNorm(nnx.Module):
    """Group normalization and SiLU (PyTorch `nn.GroupNorm`, statistics per chunk)."""

    def __init__(self, channels: int, groups: int, *, eps: float, dtype=jnp.float32):
        self.groups = groups
        self.eps = eps
        self.weight = nnx.Param(jnp.ones((channels,), dtype))
        self.bias = nnx.Param(jnp.zeros((channels,), dtype))

    def __call__(
        self,
        x: Float[Array, "batch F H W C"],
        *,
        activate: bool = True,
        kernels: bool = False,
    ) -> Float[Array, "batch F H W C"]:
        """Normalizes one chunk.

        Args:
          x: activations of any float dtype; all arithmetic is float32.
          activate: whether SiLU follows.
          kernels: whether a GPU kernel may take the sums.

        Returns:
          The result, in the dtype of x.
        """
        return self.over((x,), activate=activate, kernels=kernels)(0, x)

    def over(
        self, groups: Groups, *, activate: bool = True, kernels: bool = False
    ) -> Before:
        """The same of a chunk in groups of frames, with the statistics of all.

        Returns:
          A function of the position of a group and the group.
        """
        statistics = group_statistics(
            groups, self.groups, eps=self.eps, kernels=kernels
        )
        mean, scale = (part[:, None, None, None] for part in statistics)
        scale = scale * self.weight[...].astype(jnp.float32)
        bias = self.bias[...].astype(jnp.float32)

        def normalize(index: int, x: Array) -> Array:
            del index
            y = (x.astype(jnp.float32) - mean) * scale + bias
            return (jax.nn.silu(y) if activate else y).astype(x.dtype)

        return normalize


def latent_frames(frames: int, latents: int) -> np.ndarray:
    """Which latent frame stands for each frame of a chunk: [frames].

    Nearest in time; with an odd number of frames above 1, the first frame has the
    first latent frame for itself.
    """
    if frames > 1 and frames % 2:
        rest = np.arange(frames - 1) * (latents - 1) // (frames - 1)
        return np.concatenate([[0], 1 + rest])
    return np.arange(frames) * latents // frames


class SpatialNorm(nnx.Module):
    """Group normalization scaled and offset per latent pixel, then SiLU.

    `silu(groupnorm(x) * conv_y(z) + conv_b(z))` with 1x1x1 convolutions of the latents
    z, nearest-enlarged to the size of x (arXiv:2209.09002). The convolutions come
    first: a 1x1x1 convolution of repeated pixels is the repeated convolution.
    """

    def __init__(
        self,
        channels: int,
        latent_channels: int,
        groups: int,
        *,
        eps: float,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
    ):
        self.norm_layer = GroupNorm(channels, groups, eps=eps, dtype=dtype)
        self.conv_y = PointwiseConv(latent_channels, channels, rngs=rngs, dtype=dtype)
        self.conv_b = PointwiseConv(latent_channels, channels, rngs=rngs, dtype=dtype)

    def __call__(
        self,
        x: Float[Array, "batch F H W C"],
        z: Float[Array, "batch f h w Z"],
        *,
        kernels: bool = False,
    ) -> Float[Array, "batch F H W C"]:
        """Normalizes one chunk.

        Args:
          x: activations; height and width are multiples of those of the latents.
          z: latents of the same chunk.
          kernels: whether a GPU kernel may take the sums.

        Returns:
          The result, in the dtype of x.
        """
        return self.over((x,), z, kernels=kernels)(0, x)

    def over(
        self,
        groups: Groups,
        z: Float[Array, "batch f h w Z"],
        *,
        kernels: bool = False,
    ) -> Before:
        """The same of a chunk in groups of frames, with the statistics of all.

        Returns:
          A function of the position of a group and the group.
        """
        norm = self.norm_layer
        statistics = group_statistics(
            groups, norm.groups, eps=norm.eps, kernels=kernels
        )
        mean, scale = (part[:, None, None, None] for part in statistics)
        modulation = self.conv_y(z).astype(jnp.float32)
        factor = modulation * (scale * norm.weight[...].astype(jnp.float32))
        offset = modulation * norm.bias[...].astype(jnp.float32)
        offset = offset + self.conv_b(z).astype(jnp.float32)
        firsts = starts(groups)
        times = latent_frames(sum(part.shape[1] for part in groups), z.shape[1])

        def normalize(index: int, x: Array) -> Array:
            batch, frames, height, width, channels = x.shape
            rows, columns = z.shape[2:4]
            here = times[firsts[index] :][:frames]
            # [batch, F, rows, 1, columns, 1, C] against the enlarged x.
            scaled, moved = (
                part[:, here][:, :, :, None, :, None] for part in (factor, offset)
            )
            y = x.reshape(
                batch, frames, rows, height // rows, columns, width // columns, channels
            ).astype(jnp.float32)
            y = (y - mean[:, :, :, None, :, None]) * scaled + moved
            return jax.nn.silu(y).astype(x.dtype).reshape(x.shape)

        return normalize


class PointwiseConv(nnx.Module):
    """A 1x1x1 convolution: a linear map of the channels (weight [out, in, 1, 1, 1])."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
    ):
        bound = in_channels**-0.5
        shape = (out_channels, in_channels, 1, 1, 1)
        self.weight = nnx.Param(
            jax.random.uniform(rngs.params(), shape, dtype, -bound, bound)
        )
        self.bias = nnx.Param(
            jax.random.uniform(rngs.params(), shape[:1], dtype, -bound, bound)
        )

    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch O"]:
        """The mapped channels, in the dtype of x."""
        weight = self.weight[...][:, :, 0, 0, 0].astype(x.dtype)
        return jnp.einsum("...c,oc->...o", x, weight) + self.bias[...].astype(x.dtype)
