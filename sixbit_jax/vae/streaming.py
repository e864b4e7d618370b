"""Runs a video autoencoder over a video, chunk by chunk.

One program is compiled per shape of a chunk (the first, and all others); what the
causal layers keep is its state, donated to the next call, so that memory does not
grow with the length.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.vae.causal_conv import GROUP_BYTES, Method, State, Stream
from sixbit_jax.vae.tiling import Tiling, tile_chunks
from sixbit_jax.vae.windows import Windows, window_stream

Output = Literal["float", "uint8"]
# diffusers' clamp of the log variance.
_LOGVAR = (-30.0, 20.0)


class StreamingVAE(Protocol):
    """What this module needs to know of an autoencoder.

    Attributes:
      config: `latent_channels`, `in_channels` and `spatial_compression_ratio`.
      windows: overlapping windows of frames that are coded each for itself, or None
        where causal state connects the chunks.
    """

    config: Any
    windows: Windows | None

    def decode_lengths(self, latent_frames: int) -> tuple[int, ...]:
        """Latent frames per chunk."""
        ...

    def encode_lengths(self, frames: int) -> tuple[int, ...]:
        """Frames per chunk."""
        ...

    def decode_chunk(self, z: Array, stream: Stream) -> Array:
        """Latents [batch, f, h, w, Z] -> frames [batch, F, H, W, C]."""
        ...

    def encode_chunk(self, x: Array, stream: Stream) -> Array:
        """Frames [batch, F, H, W, C] -> moments [batch, f, h, w, 2 Z]."""
        ...


class Moments(NamedTuple):
    """The distribution of a video's latents, each float32 [batch, f, Z, h, w].

    Attributes:
      mean: also its mode, which is what the published pipelines take most often.
      logvar: log variance per value, between -30 and 20.
    """

    mean: Float[Array, "batch f Z h w"]
    logvar: Float[Array, "batch f Z h w"]


def _channels_last(x: Array) -> Array:
    return jnp.moveaxis(x, 2, -1)


def to_uint8(frames: Float[Array, "*shape"]) -> Array:
    """Pixels in [-1, 1] -> 0..255, clipped and rounded as published pipelines do."""
    unit = jnp.clip(frames.astype(jnp.float32) * 0.5 + 0.5, 0.0, 1.0)
    return jnp.round(unit * 255.0).astype(jnp.uint8)


_to_uint8 = jax.jit(to_uint8)


@partial(
    jax.jit,
    static_argnames=(
        "graph",
        "decode",
        "method",
        "kernels",
        "group_bytes",
        "output",
        "dtype",
    ),
    donate_argnames="state",
)
def _step(
    parameters: Any,
    state: State | None,
    x: Array,
    *,
    graph: Any,
    decode: bool,
    method: Method,
    dtype: Any,
    kernels: bool = False,
    group_bytes: int = GROUP_BYTES,
    output: Output = "float",
) -> tuple[Array, State]:
    vae = nnx.merge(graph, parameters)
    stream = Stream(state, method=method, kernels=kernels, group_bytes=group_bytes)
    x = _channels_last(x).astype(dtype)
    y = vae.decode_chunk(x, stream) if decode else vae.encode_chunk(x, stream)
    y = jnp.moveaxis(y, -1, 2)
    # Windows do not continue each other: what the layers kept is nobody's.
    kept = stream.state() if vae.windows is None else ()
    return (to_uint8(y) if output == "uint8" else y), kept


def _check_video(name: str, x: Array, channels: int) -> None:
    if x.ndim != 5 or x.shape[2] != channels or 0 in x.shape:
        raise ValueError(
            f"{name}: expected [batch, frames, {channels}, height, width], found "
            f"{list(x.shape)}"
        )


def decode_stream(
    vae: StreamingVAE,
    latents: Float[Array, "batch f Z h w"],
    *,
    dtype: Any = jnp.bfloat16,
    tiling: Tiling | None = None,
    output: Output = "float",
    method: Method = "stacked",
    kernels: bool = False,
    group_bytes: int = GROUP_BYTES,
) -> Iterator[Array]:
    """Decodes a video, handing out frames as they are ready.

    Args:
      vae: an autoencoder of this package.
      latents: as the decoder takes them (`latents_from_model` of its module).
      dtype: of activations and arithmetic; parameters are cast.
      tiling: decodes overlapping tiles and blends them, by diffusers' rule; other
        numbers, less memory. None decodes whole frames.
      output: "float" hands out pixels in about [-1, 1] in `dtype`, "uint8" 0..255.
      method: of the causal convolutions.
      kernels: whether GPU kernels may compute what they can.
      group_bytes: that a convolution takes in at once (CogVideoX): more is more memory,
        the numbers stay.

    Yields:
      The next frames, [batch, F, 3, H, W], on the device.

    Raises:
      ValueError: for latents that are not of this autoencoder, before the first frame.
    """
    _check_video("latents", latents, vae.config.latent_channels)
    if output not in get_args(Output):
        raise ValueError(f"output: expected 'float' or 'uint8', found {output!r}")
    step = partial(
        _stepper(vae, dtype, method, kernels), decode=True, group_bytes=group_bytes
    )
    ratio = vae.config.spatial_compression_ratio
    height, width = (ratio * size for size in latents.shape[3:])
    tiled = tiling is not None and tiling.checked(ratio).splits(height, width)
    whole = not tiled and vae.windows is None

    def run(z: Array) -> Iterator[Array]:
        lengths = vae.decode_lengths(z.shape[1])
        if tiling is None or not tiled:
            return _chunks(partial(step, output=output) if whole else step, z, lengths)
        source = tiling.scaled(ratio)
        return tile_chunks(step, z, lengths, source=source, target=tiling)

    if vae.windows is None:
        frames = run(latents)
    else:
        frames = window_stream(_only(run), latents, vae.windows, decode=True)
    return frames if whole or output == "float" else map(_to_uint8, frames)


def _only(run: Any) -> Any:
    """A window is one chunk."""
    return lambda x: next(iter(run(x)))


def _stepper(vae: StreamingVAE, dtype: Any, method: Method, kernels: bool) -> Any:
    graph, parameters = nnx.split(vae)
    return partial(
        _step,
        parameters,
        graph=graph,
        method=method,
        kernels=kernels,
        dtype=jnp.dtype(dtype),
    )


def _chunks(step: Any, x: Array, lengths: tuple[int, ...]) -> Iterator[Array]:
    state: State | None = None
    start = 0
    for length in lengths:
        y, state = step(state, x[:, start : start + length])
        start += length
        yield y


def encode(
    vae: StreamingVAE,
    video: Float[Array, "batch F 3 H W"],
    *,
    dtype: Any = jnp.float32,
    tiling: Tiling | None = None,
    method: Method = "stacked",
    kernels: bool = False,
    group_bytes: int = GROUP_BYTES,
) -> Moments:
    """Encodes a video.

    Args:
      vae: an autoencoder of this package.
      video: pixels in [-1, 1].
      dtype: of activations and arithmetic. 16 bits are visibly worse here.
      tiling: encodes overlapping tiles and blends them, by diffusers' rule.
      method: of the causal convolutions.
      kernels: whether GPU kernels may compute what they can.
      group_bytes: as in `decode_stream`.

    Returns:
      Mean and log variance of the latents (`latents_for_model` of the autoencoder's
      module makes of them what the transformer takes).

    Raises:
      ValueError: for a video that is not of this autoencoder.
    """
    _check_video("video", video, vae.config.in_channels)
    ratio = vae.config.spatial_compression_ratio
    if min(video.shape[3:]) < ratio:
        raise ValueError(
            f"video: expected at least {ratio}x{ratio} pixels, found "
            f"{video.shape[3]}x{video.shape[4]}"
        )
    step = partial(
        _stepper(vae, dtype, method, kernels), decode=False, group_bytes=group_bytes
    )
    tiled = tiling is not None and tiling.checked(ratio).splits(*video.shape[3:])
    if tiling is not None and tiled:
        tiling.check_last(ratio, *video.shape[3:])

    def run(x: Array) -> Iterator[Array]:
        lengths = vae.encode_lengths(x.shape[1])
        if tiling is None or not tiled:
            return _chunks(step, x, lengths)
        target = tiling.scaled(ratio)
        chunks = tile_chunks(step, x, lengths, source=tiling, target=target)
        # The last tile of HunyuanVideo's encoder counts a part of a latent pixel.
        height, width = (size // ratio for size in x.shape[3:])
        return (chunk[..., :height, :width] for chunk in chunks)

    if vae.windows is None:
        chunks = run(video)
    else:
        chunks = window_stream(_only(run), video, vae.windows, decode=False)
    moments = jnp.concatenate([chunk.astype(jnp.float32) for chunk in chunks], axis=1)
    mean, logvar = jnp.split(moments, 2, axis=2)
    return Moments(mean, jnp.clip(logvar, *_LOGVAR))
