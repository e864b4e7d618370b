"""The causal convolution of the Wan VAE: zeros before the video and around frames."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.vae.causal_conv import CausalConv3d, Padding, Stream, conv2d


class WanConv(CausalConv3d):
    """A causal convolution; stacked, it stacks what it reads in one pass.

    The frames of the past are not put in front of the chunk first, which would write
    and read all of it once more. They are read for the last time before those of the
    next chunk are written, and said to be: so these can take their memory.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int, int],
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            in_channels, out_channels, kernel, padding=Padding.ZEROS, rngs=rngs
        )

    def __call__(
        self, x: Float[Array, "batch F H W C"], stream: Stream
    ) -> Float[Array, "batch F H W O"]:
        """Convolves one chunk, in the dtype of x."""
        depth = self.kernel[0]
        if depth == 1 or stream.method != "stacked":
            return super().__call__(x, stream)
        past = stream.take()
        if past is None:
            past = jnp.zeros((x.shape[0], depth - 1, *x.shape[2:]), x.dtype)
        stacked = stack(past, x)
        stacked, past, x = jax.lax.optimization_barrier((stacked, past, x))
        stream.keep(window(past, x, x.shape[1], depth - 1))
        weight = self.weight[...].transpose(0, 2, 1, 3, 4)
        weight = weight.reshape(weight.shape[0], -1, *weight.shape[3:])
        rows, columns = ((size - 1) // 2 for size in self.kernel[1:])
        return conv2d(
            stacked, weight, self.bias[...], pad=((rows, rows), (columns, columns))
        )


def window(
    past: Float[Array, "batch P H W C"],
    x: Float[Array, "batch F H W C"],
    start: int,
    length: int,
) -> Float[Array, "batch length H W C"]:
    """Frames `start` to `start + length` of the past and x, one behind the other."""
    before = past.shape[1]
    stop = start + length
    parts = [past[:, start : min(stop, before)], x[:, max(start - before, 0) :]]
    parts[1] = parts[1][:, : max(stop - max(start, before), 0)]
    parts = [part for part in parts if part.shape[1]]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, 1)


def stack(
    past: Float[Array, "batch P H W C"], x: Float[Array, "batch F H W C"]
) -> Float[Array, "batch F H W D"]:
    """Each frame behind the P before it, in the channels: D is (P + 1) C."""
    frames = x.shape[1]
    parts = [window(past, x, i, frames) for i in range(past.shape[1] + 1)]
    return jnp.concatenate(parts, axis=-1)
