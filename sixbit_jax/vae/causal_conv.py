"""Causal 3D convolutions of video autoencoders, as streams over time.

Activations are channels-last, [batch, F, H, W, C]; weights keep PyTorch's layout. A
causal kernel of kt frames reads the frame it writes and the kt - 1 before it. Between
chunks of a video those frames are explicit state, held by a `Stream`:

    stream = Stream(state)               # None: this chunk is the first
    y = layer(x, stream)                 # takes its frames, leaves new ones
    state = stream.state()               # a pytree, for the next chunk

On a GPU one 2D convolution over kt frames stacked in the channels is faster than the
3D convolution (590-684 against 448-587 TFLOP/s on an H200, 3x3x3, 128 to 512
channels).
"""

import math
from enum import Enum
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Method = Literal["stacked", "framewise", "conv3d"]
METHODS: tuple[Method, ...] = ("stacked", "framewise", "conv3d")
State = tuple[jax.Array, ...]
# Of one axis: rows added before and after.
Pad = tuple[tuple[int, int], tuple[int, int]]
_NONE: Pad = ((0, 0), (0, 0))
# Three stacked frames of 480x720 with 128 channels in bfloat16, one at a time.
GROUP_BYTES = 2**28


class Padding(Enum):
    """What stands outside the video: before its first frame, and around each frame."""

    ZEROS = "zeros"  # zeros everywhere (Wan)
    FIRST_FRAME = "first_frame"  # the first frame again; zeros around (CogVideoX)
    REPLICATE = "replicate"  # the first frame again; the border again (HunyuanVideo)


class Stream:
    """The frames that causal layers keep between chunks, in the order of their calls.

    A plain object of tracing time: make one inside the jitted step from the state of
    the last chunk, hand it to every layer, return `state()`. The order of calls is
    the program's, so that chunks of any length share one layout.

    Attributes:
      first: whether the chunk is the first of its video.
      method: how causal convolutions are computed.
      kernels: whether GPU kernels may compute what they can.
      group_bytes: that a convolution takes in at once, where a network works on
        groups of frames (`frame_groups`).
    """

    def __init__(
        self,
        state: State | None,
        *,
        method: Method = "stacked",
        kernels: bool = False,
        group_bytes: int = GROUP_BYTES,
    ):
        if method not in METHODS:
            raise ValueError(
                f"method: expected one of {', '.join(METHODS)}; found {method!r}"
            )
        self.first = state is None
        self.method: Method = method
        self.kernels = kernels
        self.group_bytes = group_bytes
        self._given = state or ()
        self._kept: list[jax.Array] = []

    def take(self) -> Array | None:
        """What the next layer kept of the last chunk; None in the first chunk.

        Raises:
          ValueError: if the state belongs to a program of fewer layers.
        """
        if self.first:
            return None
        if len(self._kept) >= len(self._given):
            raise ValueError(
                f"stream: expected the state of {len(self._kept) + 1} layers or more, "
                f"found {len(self._given)}"
            )
        return self._given[len(self._kept)]

    def keep(self, frames: Array) -> None:
        """Keeps what the same layer will take in the next chunk; after `take`."""
        self._kept.append(frames)

    def state(self) -> State:
        """What all layers kept.

        Raises:
          ValueError: if a layer of the last chunk was not called in this one.
        """
        if not self.first and len(self._kept) != len(self._given):
            raise ValueError(
                f"stream: expected {len(self._given)} layers to keep frames, as in "
                f"the last chunk, found {len(self._kept)}"
            )
        return tuple(self._kept)


class Continued(NamedTuple):
    """A chunk with its past in front.

    Attributes:
      frames: [batch, past + F, H, W, C].
      kept: its last `past` frames, the past of the next chunk.
    """

    frames: Float[Array, "batch P H W C"]
    kept: Float[Array, "batch past H W C"]


def with_past(
    x: Float[Array, "batch F H W C"],
    past: Float[Array, "batch past H W C"] | None,
    length: int,
    padding: Padding,
) -> Continued:
    """Puts the frames before a chunk in front of it.

    Args:
      x: the chunk.
      past: the last `length` frames before it, or None for the first chunk.
      length: frames that a causal kernel sees of the past (kt - 1).
      padding: what a first chunk sees instead.

    Returns:
      The longer chunk and the frames to keep.

    Raises:
      ValueError: if `past` is not `length` frames of the chunk's size.
    """
    shape = (x.shape[0], length, *x.shape[2:])
    if past is None:
        if padding is Padding.ZEROS:
            past = jnp.zeros(shape, x.dtype)
        else:
            past = jnp.broadcast_to(x[:, :1], shape)
    elif past.shape != shape:
        raise ValueError(
            f"frames of the last chunk: expected {list(shape)}, found "
            f"{list(past.shape)}"
        )
    frames = jnp.concatenate([past.astype(x.dtype), x], axis=1)
    return Continued(frames, frames[:, frames.shape[1] - length :])


def conv2d(
    x: Float[Array, "*batch H W C"],
    weight: Float[Array, "O I kh kw"],
    bias: Float[Array, "O"] | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    pad: Pad = _NONE,
) -> Float[Array, "*batch H2 W2 O"]:
    """A 2D convolution of every frame, zeros around it, in the dtype of x.

    Args:
      x: frames.
      weight: in PyTorch's layout.
      bias: per output channel.
      stride: of rows and columns.
      pad: zeros before and after, of rows and of columns.

    Returns:
      The convolved frames. float32 products follow `jax.default_matmul_precision`
      (TF32 on GPUs unless it says otherwise, as in PyTorch).
    """
    strides = (stride, stride) if isinstance(stride, int) else stride
    y = jax.lax.conv_general_dilated(
        x.reshape(-1, *x.shape[-3:]),
        weight.astype(x.dtype).transpose(2, 3, 1, 0),
        strides,
        pad,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    y = y if bias is None else y + bias.astype(x.dtype)
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def frames_conv(
    frames: Float[Array, "batch P H W C"],
    weight: Float[Array, "O I kt kh kw"],
    bias: Float[Array, "O"] | None = None,
    *,
    stride: tuple[int, int, int] = (1, 1, 1),
    pad: Pad = _NONE,
    method: Method = "stacked",
) -> Float[Array, "batch F H2 W2 O"]:
    """A 3D convolution without padding in time.

    Args:
      frames: P frames, the past included.
      weight: in PyTorch's layout.
      bias: per output channel.
      stride: of frames, rows and columns.
      pad: zeros before and after, of rows and of columns.
      method: "stacked" is one 2D convolution over kt frames in the channels,
        "framewise" the same for one frame after the other (kt frames of temporary
        memory, not kt times all), "conv3d" XLA's own. All are the same sum.

    Returns:
      (P - kt) // stride + 1 frames, in the dtype of `frames`.

    Raises:
      ValueError: if there are fewer frames than the kernel has.
    """
    depth = weight.shape[2]
    if frames.shape[1] < depth:
        raise ValueError(
            f"frames: expected at least {depth}, found {frames.shape[1]} (the past "
            "included)"
        )
    if method == "conv3d" and depth > 1:
        y = jax.lax.conv_general_dilated(
            frames,
            weight.astype(frames.dtype).transpose(2, 3, 4, 1, 0),
            stride,
            ((0, 0), *pad),
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
        return y if bias is None else y + bias.astype(y.dtype)
    length = (frames.shape[1] - depth) // stride[0] + 1
    # The channels of one frame stay together, as the concatenation puts them.
    flat = weight.transpose(0, 2, 1, 3, 4).reshape(
        weight.shape[0], -1, *weight.shape[3:]
    )

    def convolve(stacked: Array) -> Array:
        return conv2d(stacked, flat, bias, stride=stride[1:], pad=pad)

    if method == "framewise" and depth > 1 and length > 1:

        def one(index: Array) -> Array:
            window = jax.lax.dynamic_slice_in_dim(frames, index, depth, axis=1)
            parts = [window[:, i] for i in range(depth)]
            return convolve(jnp.concatenate(parts, axis=-1))

        return jnp.moveaxis(jax.lax.map(one, jnp.arange(length) * stride[0]), 0, 1)
    last = (length - 1) * stride[0] + 1
    parts = [frames[:, i : i + last : stride[0]] for i in range(depth)]
    return convolve(jnp.concatenate(parts, axis=-1))


def _uniform(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, dtype) -> nnx.Param:
    bound = 1.0 / math.sqrt(fan_in)
    return nnx.Param(jax.random.uniform(rngs.params(), shape, dtype, -bound, bound))


class Conv2d(nnx.Module):
    """A 2D convolution of every frame (PyTorch `nn.Conv2d`, its layout)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        pad: Pad = _NONE,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
    ):
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        fan_in = in_channels * math.prod(size)
        self.weight = _uniform(rngs, (out_channels, in_channels, *size), fan_in, dtype)
        self.bias = _uniform(rngs, (out_channels,), fan_in, dtype)
        self.stride = stride
        self.pad = pad

    def __call__(self, x: Float[Array, "*batch H W C"]) -> Float[Array, "*batch H W O"]:
        """The convolved frames, in the dtype of x."""
        weight, bias = self.weight[...], self.bias[...]
        return conv2d(x, weight, bias, stride=self.stride, pad=self.pad)


class CausalConv3d(nnx.Module):
    """A 3D convolution that never looks ahead in time (PyTorch `nn.Conv3d`'s layout).

    Rows and columns are padded so that a stride of 1 keeps their number. A kernel of
    one frame needs no past and keeps none. A stride in time counts from the first
    frame of each chunk, so that chunks must be multiples of it after the first.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int, int],
        *,
        padding: Padding,
        stride: tuple[int, int, int] = (1, 1, 1),
        rngs: nnx.Rngs,
        dtype=jnp.float32,
    ):
        size = (kernel, kernel, kernel) if isinstance(kernel, int) else kernel
        fan_in = in_channels * math.prod(size)
        self.weight = _uniform(rngs, (out_channels, in_channels, *size), fan_in, dtype)
        self.bias = _uniform(rngs, (out_channels,), fan_in, dtype)
        self.kernel = size
        self.padding = padding
        self.stride = stride

    def __call__(
        self, x: Float[Array, "batch F H W C"], stream: Stream
    ) -> Float[Array, "batch F2 H2 W2 O"]:
        """Convolves one chunk.

        Args:
          x: the chunk.
          stream: takes the frames before it from here, and leaves its last ones.

        Returns:
          The result, in the dtype of x.
        """
        past = self.kernel[0] - 1
        if past:
            x, kept = with_past(x, stream.take(), past, self.padding)
            stream.keep(kept)
        return self.convolve(x, stream)

    def convolve(
        self, x: Float[Array, "batch P H W C"], stream: Stream
    ) -> Float[Array, "batch F H2 W2 O"]:
        """Convolves frames that have their past in front; the stream keeps nothing."""
        rows, columns = ((size - 1) // 2 for size in self.kernel[1:])
        pad = ((rows, rows), (columns, columns))
        if self.padding is Padding.REPLICATE and (rows or columns):
            x = jnp.pad(x, ((0, 0), (0, 0), *pad, (0, 0)), mode="edge")
            pad = _NONE
        return frames_conv(
            x,
            self.weight[...],
            self.bias[...],
            stride=self.stride,
            pad=pad,
            method=stream.method,
        )
