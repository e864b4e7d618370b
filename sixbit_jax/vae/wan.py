"""The video autoencoder of Wan 2.1 and 2.2 (diffusers `AutoencoderKLWan`).

Both halves are streams over time: a step takes a chunk and the frames that causal
convolutions kept of the last one, and memory does not grow with the video's length.
Norms and attention see single pixels and frames, so that the numbers do not depend on
the length of the chunks: diffusers' are one latent frame long.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from sixbit_jax.vae.causal_conv import Method, State
from sixbit_jax.vae.wan_blocks import WanStream
from sixbit_jax.vae.wan_config import WanVAEConfig
from sixbit_jax.vae.wan_conv import WanConv
from sixbit_jax.vae.wan_network import WanDecoder, WanEncoder
from sixbit_jax.vae.wan_tiling import Grid, WanTiling, join

# Bytes that the three stacked frames of a chunk's widest convolution may have, and the
# most latent frames of a chunk however small they are.
_STACK_BYTES = 1 << 30
_MOST_LATENTS = 8


class AutoencoderKLWan(nnx.Module):
    """The autoencoder; parameters have diffusers' names. See `decode_stream`, `encode`.

    Args:
      config: its configuration.
      rngs: of the initial weights.
    """

    class_name = "AutoencoderKLWan"
    config_class = WanVAEConfig
    stacks = ()

    def __init__(self, config: WanVAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = WanEncoder(config, rngs=rngs)
        self.quant_conv = WanConv(2 * config.z_dim, 2 * config.z_dim, 1, rngs=rngs)
        self.post_quant_conv = WanConv(config.z_dim, config.z_dim, 1, rngs=rngs)
        self.decoder = WanDecoder(config, rngs=rngs)

    @staticmethod
    def weight_role(name: str) -> str | None:
        """How a parameter may be quantized: none of them may."""
        del name
        return None


def latents_from_model(
    config: WanVAEConfig, z: Float[Array, "batch F C H W"]
) -> Float[Array, "batch F C H W"]:
    """Latents as the decoder takes them, from those of the denoising network."""
    mean, std = _statistics(config, z)
    return z * std + mean


def latents_for_model(
    config: WanVAEConfig, z: Float[Array, "batch F C H W"]
) -> Float[Array, "batch F C H W"]:
    """Latents as the denoising network has them, from those of the encoder."""
    mean, std = _statistics(config, z)
    return (z - mean) / std


def _statistics(config: WanVAEConfig, z: Array) -> tuple[Array, Array]:
    if z.ndim != 5 or z.shape[2] != config.z_dim:
        raise ValueError(
            f"latents: expected [batch, frames, {config.z_dim}, height, width], found "
            f"{list(z.shape)}"
        )
    values = (config.latents_mean, config.latents_std)
    mean, std = (jnp.asarray(v, z.dtype)[:, None, None] for v in values)
    return mean, std


class _Half(NamedTuple):
    """The encoder or the decoder as a pure function of its weights.

    Attributes:
      step: (weights, past, chunk, begins) -> (result, kept); jitted.
      weights: its parameters, in the dtype of the computation.
    """

    step: Callable[..., tuple[jax.Array, State]]
    weights: Any

    def start(self, chunk: Array) -> State:
        """What no chunk before the first leaves: zeros."""
        begins = jnp.asarray(True)
        kept = jax.eval_shape(self.step, self.weights, None, chunk, begins)[1]
        return tuple(jnp.zeros(one.shape, one.dtype) for one in kept)


def _half(modules: tuple[nnx.Module, ...], step: Any, dtype: Any, **options) -> _Half:
    graph, weights = nnx.split(modules)
    weights = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), weights)
    return _Half(partial(step, graph, **options), weights)


@partial(jax.jit, static_argnums=0, static_argnames="method", donate_argnums=2)
def _decode_step(
    graph: Any,
    weights: Any,
    past: State | None,
    latents: Float[Array, "batch F Z H W"],
    begins: Bool[Array, ""],
    *,
    method: Method,
) -> tuple[Float[Array, "batch F2 H2 W2 C"], State]:
    post_quant_conv, decoder = nnx.merge(graph, weights)
    stream = WanStream(past, begins, method=method)
    x = post_quant_conv(latents.transpose(0, 1, 3, 4, 2), stream)
    return decoder(x, stream), stream.state()


@partial(jax.jit, static_argnums=0, static_argnames="method", donate_argnums=2)
def _encode_step(
    graph: Any,
    weights: Any,
    past: State | None,
    video: Float[Array, "batch F H W C"],
    begins: Bool[Array, ""],
    *,
    method: Method,
) -> tuple[Float[Array, "batch F2 H2 W2 Z"], State]:
    quant_conv, encoder = nnx.merge(graph, weights)
    stream = WanStream(past, begins, method=method)
    x = quant_conv(encoder(video, stream), stream)
    return x, stream.state()


@partial(jax.jit, static_argnames="patch")
def _to_channels_last(
    video: Float[Array, "batch F 3 H W"], *, patch: int
) -> Float[Array, "batch F H2 W2 C"]:
    """Channels in diffusers' order: colour, column, row."""
    batch, frames, colours, height, width = video.shape
    x = video.reshape(
        batch, frames, colours, height // patch, patch, width // patch, patch
    )
    x = x.transpose(0, 1, 3, 5, 2, 6, 4)
    return x.reshape(*x.shape[:4], -1)


@partial(jax.jit, static_argnames="patch")
def _to_pixels(
    x: Float[Array, "batch F H W C"], *, patch: int
) -> Float[Array, "batch F 3 H2 W2"]:
    """The inverse of `_to_channels_last`, held to [-1, 1]."""
    batch, frames, height, width, _ = x.shape
    x = x.reshape(batch, frames, height, width, -1, patch, patch)
    x = x.transpose(0, 1, 4, 2, 6, 3, 5)
    x = x.reshape(batch, frames, -1, height * patch, width * patch)
    return jnp.clip(x, -1.0, 1.0)


def chunk_length(
    config: WanVAEConfig, *, frames: int, pixels: int, dim: int, dtype: Any
) -> int:
    """Latent frames of a chunk where the caller names none.

    Low levels fill a device better in longer chunks; memory grows with them. As many
    as keep the widest convolution's input under a gibibyte, then as few as need no
    more chunks.

    Args:
      config: of the autoencoder.
      frames: latent frames of the whole video.
      pixels: rows times columns of the video (of a tile, if tiled) times the batch.
      dim: channels at the level of the video.
      dtype: of the computation.
    """
    per_latent = 3 * config.scale_factor_temporal * pixels // config.patch**2 * dim
    most = _STACK_BYTES // (per_latent * jnp.dtype(dtype).itemsize)
    most = min(max(most, 1), _MOST_LATENTS, frames)
    return -(-frames // -(-frames // most))


def decode_stream(
    vae: AutoencoderKLWan,
    latents: Float[Array, "batch F Z H W"] | np.ndarray,
    *,
    dtype: Any = jnp.bfloat16,
    tiling: WanTiling | None = None,
    chunk: int | None = None,
    method: Method = "stacked",
) -> Iterator[Float[Array, "batch f 3 H2 W2"]]:
    """Decodes latents, handing out frames as they are ready.

    ```python
    z = latents_from_model(vae.config, z)
    frames = [np.asarray(part) for part in decode_stream(vae, z)]
    ```

    Args:
      vae: the autoencoder.
      latents: as the encoder makes them (see `latents_from_model`).
      dtype: of the computation and of the frames.
      tiling: how to cut frames that do not fit, by diffusers' rule; changes the
        numbers. Not applied to frames that one tile covers.
      chunk: latent frames of a step; None chooses by size. Changes speed and memory
        only.
      method: how causal convolutions are computed (see `causal_conv`).

    Returns:
      An iterator of frames in [-1, 1], on the device: 4 (F - 1) + 1 of them in all
      (with a `scale_factor_temporal` of 4).

    Raises:
      ValueError: for latents of another shape, or a chunk below 1; before anything
        is computed.
    """
    config = vae.config
    if latents.ndim != 5 or latents.shape[2] != config.z_dim or 0 in latents.shape:
        raise ValueError(
            f"latents: expected [batch, frames, {config.z_dim}, height, width], found "
            f"{list(latents.shape)}"
        )
    grid = Grid.for_decoder(config, tiling, latents.shape[-2:])
    pixels = latents.shape[0] * grid.largest() * config.scale_factor_spatial**2
    length = latents.shape[1]
    chunk = _checked_chunk(
        config, chunk, length, pixels=pixels, dim=config.decoder_dim, dtype=dtype
    )
    modules = (vae.post_quant_conv, vae.decoder)
    half = _half(modules, _decode_step, dtype, method=method)
    return _decoded(config, half, latents, grid, chunk, dtype)


def _checked_chunk(
    config: WanVAEConfig, chunk: int | None, frames: int, **sizes: Any
) -> int:
    if chunk is None:
        return chunk_length(config, frames=frames, **sizes)
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1 latent frame, found {chunk}")
    return min(chunk, frames)


def _decoded(
    config: WanVAEConfig,
    half: _Half,
    latents: Array | np.ndarray,
    grid: Grid,
    chunk: int,
    dtype: Any,
) -> Iterator[Array]:
    group, total = config.scale_factor_temporal, latents.shape[1]
    past: list[State] = []
    for start in range(0, total, chunk):
        # What comes after the last frame changes nothing before it.
        part = _padded(latents, start, start + chunk)
        tiles = [jnp.asarray(part[..., r, c], dtype) for r, c in grid.slices()]
        results, past = _run(half, past, tiles, begins=start == 0)
        frames = _to_pixels(join(results, grid), patch=config.patch)
        first = group - 1 if start == 0 else 0
        yield frames[:, first : group * min(chunk, total - start)]


def _padded(x: Array | np.ndarray, start: int, stop: int) -> Array | np.ndarray:
    """Frames `start` to `stop`, zeros where there are none."""
    part = x[:, max(start, 0) : stop]
    before, after = max(-start, 0), max(stop - x.shape[1], 0)
    if not before and not after:
        return part
    numpy = np if isinstance(x, np.ndarray) else jnp
    return numpy.pad(part, ((0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)))


def _run(
    half: _Half, past: Sequence[State], tiles: Sequence[Array], *, begins: bool
) -> tuple[list[Array], list[State]]:
    """One step of every tile, each with a past of its own."""
    results, kept = [], []
    for i, tile in enumerate(tiles):
        before = half.start(tile) if begins else past[i]
        result, after = half.step(half.weights, before, tile, jnp.asarray(begins))
        results.append(result)
        kept.append(after)
    return results, kept


def encode(
    vae: AutoencoderKLWan,
    video: Float[Array, "batch F 3 H W"] | np.ndarray,
    *,
    dtype: Any = jnp.float32,
    tiling: WanTiling | None = None,
    chunk: int | None = None,
    method: Method = "stacked",
) -> tuple[Float[Array, "batch f Z H2 W2"], Float[Array, "batch f Z H2 W2"]]:
    """Encodes a video; a picture is a video of one frame.

    Args:
      vae: the autoencoder.
      video: pixels in [-1, 1]; of a NumPy array, only a chunk at a time is on the
        device.
      dtype: of the computation; bfloat16 is visibly worse here, other than when
        decoding.
      tiling: as in `decode_stream`.
      chunk: as in `decode_stream`.
      method: as in `decode_stream`.

    Returns:
      The mean, and the logarithm of the variance held to [-30, 20] as diffusers
      does, of (F - 1) / 4 + 1 latent frames (with a `scale_factor_temporal` of 4).

    Raises:
      ValueError: for a video of another shape, a number of frames that is not one
        more than a multiple of 4, or sizes that the network cannot halve.
    """
    config = vae.config
    _check_video(config, video.shape, tiling)
    group, batch = config.scale_factor_temporal, video.shape[0]
    sizes = (video.shape[3] // config.patch, video.shape[4] // config.patch)
    grid = Grid.for_encoder(config, tiling, sizes)
    total = (video.shape[1] - 1) // group + 1
    chunk = _checked_chunk(
        config,
        chunk,
        total,
        pixels=batch * grid.largest() * config.patch**2,
        dim=config.base_dim,
        dtype=dtype,
    )
    half = _half((vae.quant_conv, vae.encoder), _encode_step, dtype, method=method)
    past: list[State] = []
    found = []
    for start in range(0, total, chunk):
        # The first frame is the last of a group: there are none before it.
        early = group * start - (group - 1)
        part = jnp.asarray(_padded(video, early, early + group * chunk), dtype)
        x = _to_channels_last(part, patch=config.patch)
        tiles = [x[:, :, r, c] for r, c in grid.slices()]
        results, past = _run(half, past, tiles, begins=start == 0)
        found.append(join(results, grid)[:, : total - start])
    both = jnp.concatenate(found, 1).transpose(0, 1, 4, 2, 3)
    mean, logvar = jnp.split(both, 2, axis=2)
    return mean, jnp.clip(logvar, -30.0, 20.0)


def _check_video(
    config: WanVAEConfig, shape: tuple[int, ...], tiling: WanTiling | None
) -> None:
    if len(shape) != 5 or shape[2] != 3 or 0 in shape:
        raise ValueError(
            f"video: expected [batch, frames, 3, height, width], found {list(shape)}"
        )
    group, factor = config.scale_factor_temporal, config.scale_factor_spatial
    problems = []
    if (shape[1] - 1) % group:
        lower = (shape[1] - 1) // group * group + 1
        problems.append(
            f"frames: expected one more than a multiple of {group}, such as {lower} "
            f"or {lower + group}, found {shape[1]}"
        )
    # Shortcuts cut frames into squares; without them odd rows and columns are dropped.
    whole = config.is_residual or config.patch > 1 or tiling is not None
    for name, size in zip(("height", "width"), shape[3:], strict=True):
        if size < factor or (whole and size % factor):
            kind = "a multiple of" if whole else "at least"
            problems.append(f"{name}: expected {kind} {factor} pixels, found {size}")
    if problems:
        raise ValueError("video:\n  " + "\n  ".join(problems))
