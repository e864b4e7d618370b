"""Between the levels of the Wan VAE: fewer or more rows, columns and frames."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.vae.causal_conv import Conv2d, Padding, frames_conv, with_past
from sixbit_jax.vae.wan_blocks import WanStream
from sixbit_jax.vae.wan_conv import WanConv

_SAME = ((1, 1), (1, 1))
_AFTER = ((0, 1), (0, 1))


class Downsample(nnx.Module):
    """Half the rows and columns, and half the frames if `temporal`."""

    def __init__(self, dim: int, group: int, *, temporal: bool, rngs: nnx.Rngs):
        self.group = group
        self.resample = Conv2d(dim, dim, 3, stride=2, pad=_AFTER, rngs=rngs)
        self.time_conv = WanConv(dim, dim, (3, 1, 1), rngs=rngs) if temporal else None

    def __call__(
        self, x: Float[Array, "batch F H W C"], stream: WanStream
    ) -> Float[Array, "batch F2 H2 W2 C"]:
        """One chunk; with `temporal` it has an even number of frames.

        A frame of the result sees its two frames and the one before them. The first
        frame of the video sees none of the others and passes as it is.
        """
        x = self.resample(x)
        if self.time_conv is None:
            return x
        frames, kept = with_past(x, stream.take(), 1, Padding.ZEROS)
        stream.keep(kept)
        y = frames_conv(
            frames,
            self.time_conv.weight[...],
            self.time_conv.bias[...],
            stride=(2, 1, 1),
            method=stream.method,
        )
        first = stream.up_to(y.shape[1], self.group // 2)
        return jnp.where(first, x[:, 1::2], y)


class Upsample(nnx.Module):
    """Twice the rows and columns, and twice the frames if `temporal`."""

    def __init__(
        self, dim: int, out_dim: int, group: int, *, temporal: bool, rngs: nnx.Rngs
    ):
        self.group = group
        self.resample = Conv2d(dim, out_dim, 3, pad=_SAME, rngs=rngs)
        self.time_conv = (
            WanConv(dim, 2 * dim, (3, 1, 1), rngs=rngs) if temporal else None
        )

    def __call__(
        self, x: Float[Array, "batch F H W C"], stream: WanStream
    ) -> Float[Array, "batch F2 H2 W2 D"]:
        """One chunk.

        The first frame of the video stays one frame, and the others see zeros in its
        place.
        """
        if self.time_conv is not None:
            x = self._more_frames(x, stream)
        batch, frames, height, width, dim = x.shape
        shape = (batch, frames, height, 2, width, 2, dim)
        x = jnp.broadcast_to(x[:, :, :, None, :, None], shape)
        return self.resample(x.reshape(batch, frames, 2 * height, 2 * width, dim))

    def _more_frames(
        self, x: Float[Array, "batch F H W C"], stream: WanStream
    ) -> Float[Array, "batch F2 H W C"]:
        assert self.time_conv is not None
        batch, frames, height, width, dim = x.shape
        y = self.time_conv(stream.clear(x, self.group), stream)
        y = y.reshape(batch, frames, height, width, 2, dim).transpose(0, 1, 4, 2, 3, 5)
        first = stream.up_to(frames, self.group)[:, None]
        y = jnp.where(first, x[:, :, None], y)
        return y.reshape(batch, 2 * frames, height, width, dim)


def averaged(
    x: Float[Array, "batch F H W C"], out_dim: int, time: int, space: int
) -> Float[Array, "batch F2 H2 W2 D"]:
    """The shortcut down: pixels become channels, groups of which are averaged.

    Args:
      x: a chunk whose sizes are multiples of the factors.
      out_dim: channels of the result, D.
      time, space: how many frames, and rows and columns, become one.
    """
    batch, frames, height, width, dim = x.shape
    x = x.reshape(
        batch, frames // time, time, height // space, space, width // space, space, dim
    )
    x = x.transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(*x.shape[:4], out_dim, -1).mean(-1)


def repeated(
    x: Float[Array, "batch F H W C"], out_dim: int, time: int, space: int
) -> Float[Array, "batch F2 H2 W2 D"]:
    """The shortcut up: channels, repeated as needed, become pixels.

    Args:
      x: a chunk.
      out_dim: channels of the result, D.
      time, space: how many frames, and rows and columns, one becomes.
    """
    batch, frames, height, width, dim = x.shape
    x = jnp.repeat(x, out_dim * time * space * space // dim, axis=-1)
    x = x.reshape(batch, frames, height, width, out_dim, time, space, space)
    x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, frames * time, height * space, width * space, out_dim)
