"""The video autoencoder of Wan 2.1 and 2.2 (diffusers `AutoencoderKLWan`).

Both halves are streams over time: a step takes a chunk and the frames that causal
convolutions kept of the last one, and memory does not grow with the video's length.
Norms and attention see single pixels and frames, so that the numbers do not depend on
the length of the chunks: diffusers' are one latent frame long. All chunks of a video,
the first and the last included, are one program.
"""

from collections.abc import Iterator
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sixbit_jax.vae.causal_conv import Method, State
from sixbit_jax.vae.streaming import Moments, Output, to_uint8
from sixbit_jax.vae.tiling import Tiling
from sixbit_jax.vae.wan_config import WanVAEConfig
from sixbit_jax.vae.wan_conv import WanConv
from sixbit_jax.vae.wan_network import WanDecoder, WanEncoder
from sixbit_jax.vae.wan_steps import Half, to_channels, to_pixels

# Bytes that the three stacked frames of a chunk's widest convolution may have, and the
# most latent frames of a chunk however small they are.
_STACK_BYTES = 1 << 30
_MOST_LATENTS = 8


class AutoencoderKLWan(nnx.Module):
    """The autoencoder; parameters have diffusers' names. See `decode_stream`, `encode`.

    Args:
      config: its configuration.
      rngs: the random numbers of the initial weights.
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


def chunk_length(
    config: WanVAEConfig, *, frames: int, pixels: int, dim: int, dtype: Any
) -> int:
    """Latent frames of a chunk where the caller names none.

    Low levels fill a device better in longer chunks; memory grows with them. As many
    as keep the widest convolution's input under a gibibyte, then as few as need no
    more chunks.

    Args:
      config: the config of the autoencoder.
      frames: latent frames of the whole video.
      pixels: rows times columns of the video (of a tile, if tiled) times the batch.
      dim: channels at the level of the video.
      dtype: the dtype of the computation.
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
    tiling: Tiling | None = None,
    output: Output = "float",
    chunk: int | None = None,
    method: Method = "stacked",
) -> Iterator[Array]:
    """Decodes latents, handing out frames as they are ready.

    ```python
    z = latents_from_model(vae.config, z)
    frames = [np.asarray(part) for part in decode_stream(vae, z)]
    ```

    Args:
      vae: the autoencoder.
      latents: as the encoder makes them (see `latents_from_model`).
      dtype: the dtype of the computation; parameters are cast.
      tiling: how to cut frames that do not fit, by diffusers' rule; changes the
        numbers. Not applied to frames that one tile covers. With `patch_size`, tiles
        of the decoder are of this size and those of the encoder that much larger.
      output: "float" hands out pixels in [-1, 1] in `dtype`, "uint8" 0 to 255.
      chunk: latent frames of a step; None chooses by size (`chunk_length`). Changes
        speed and memory only.
      method: how causal convolutions are computed (see `causal_conv`).

    Returns:
      An iterator of frames [batch, f, 3, H2, W2] on the device: 4 (F - 1) + 1 of them
      in all (with a `scale_factor_temporal` of 4).

    Raises:
      ValueError: for latents of another shape and for values of the options that are
        not possible; before anything is computed.
    """
    config, ratio = vae.config, vae.config.scale_factor_spatial
    if latents.ndim != 5 or latents.shape[2] != config.z_dim or 0 in latents.shape:
        raise ValueError(
            f"latents: expected [batch, frames, {config.z_dim}, height, width], found "
            f"{list(latents.shape)}"
        )
    if output not in get_args(Output):
        raise ValueError(f"output: expected 'float' or 'uint8', found {output!r}")
    batch, length, _, *sizes = latents.shape
    height, width = (ratio * size for size in sizes)
    if tiling is not None and not tiling.checked(ratio).splits(height, width):
        tiling = None
    if tiling is not None:
        height, width = min(height, tiling.height), min(width, tiling.width)
    sizes = {"pixels": batch * height * width, "dim": config.decoder_dim}
    chunk = _checked_chunk(config, chunk, frames=length, dtype=dtype, **sizes)
    half = Half.of(
        vae.post_quant_conv,
        vae.decoder,
        decodes=True,
        dtype=dtype,
        method=method,
        source=tiling and tiling.scaled(ratio),
        target=tiling and tiling.scaled(config.patch),
    )
    return _decoded(config, half, latents, chunk, dtype, output)


def _checked_chunk(
    config: WanVAEConfig, chunk: int | None, *, frames: int, **sizes: Any
) -> int:
    if chunk is None:
        return chunk_length(config, frames=frames, **sizes)
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1 latent frame, found {chunk}")
    return min(chunk, frames)


def _decoded(
    config: WanVAEConfig,
    half: Half,
    latents: Array | np.ndarray,
    chunk: int,
    dtype: Any,
    output: Output,
) -> Iterator[Array]:
    group, total = config.scale_factor_temporal, latents.shape[1]
    past: list[list[State]] = []
    ready = None
    for start in range(0, total, chunk):
        # What comes after the last frame changes nothing before it.
        part = jnp.asarray(_padded(latents, start, start + chunk), dtype)
        result, past = half.run(past, part, begins=start == 0)
        frames = to_pixels(result, patch=config.patch)
        frames = _to_uint8(frames) if output == "uint8" else frames
        if ready is not None:
            # The next step is under way while the caller has these.
            yield ready
        first = group - 1 if start == 0 else 0
        ready = frames[:, first : group * min(chunk, total - start)]
    assert ready is not None
    yield ready


_to_uint8 = jax.jit(to_uint8)


def _padded(x: Array | np.ndarray, start: int, stop: int) -> Array | np.ndarray:
    """Frames `start` to `stop`, zeros where there are none."""
    part = x[:, max(start, 0) : stop]
    before, after = max(-start, 0), max(stop - x.shape[1], 0)
    if not before and not after:
        return part
    numpy = np if isinstance(x, np.ndarray) else jnp
    return numpy.pad(part, ((0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)))


def encode(
    vae: AutoencoderKLWan,
    video: Float[Array, "batch F 3 H W"] | np.ndarray,
    *,
    dtype: Any = jnp.float32,
    tiling: Tiling | None = None,
    chunk: int | None = None,
    method: Method = "stacked",
) -> Moments:
    """Encodes a video; a picture is a video of one frame.

    Args:
      vae: the autoencoder.
      video: pixels in [-1, 1]; of a NumPy array, only a chunk at a time is on the
        device.
      dtype: of the computation; bfloat16 is visibly worse here, other than when
        decoding.
      tiling, chunk, method: as in `decode_stream`.

    Returns:
      Mean, and log variance held to [-30, 20] as diffusers does, of (F - 1) / 4 + 1
      latent frames (with a `scale_factor_temporal` of 4).

    Raises:
      ValueError: for a video of another shape, a number of frames that is not one
        more than a multiple of 4, or sizes that the network cannot halve.
    """
    config = vae.config
    _check_video(config, video.shape, tiling)
    batch, frames, _, height, width = video.shape
    ratio, group = config.scale_factor_spatial, config.scale_factor_temporal
    if tiling is not None and not tiling.checked(ratio).splits(height, width):
        tiling = None
    if tiling is not None:
        height = min(height, tiling.height * config.patch)
        width = min(width, tiling.width * config.patch)
    total = (frames - 1) // group + 1
    sizes = {"pixels": batch * height * width, "dim": config.base_dim}
    chunk = _checked_chunk(config, chunk, frames=total, dtype=dtype, **sizes)
    half = Half.of(
        vae.quant_conv,
        vae.encoder,
        decodes=False,
        dtype=dtype,
        method=method,
        source=tiling,
        target=tiling and tiling.scaled(ratio // config.patch),
    )
    past: list[list[State]] = []
    found = []
    for start in range(0, total, chunk):
        # The first frame is the last of a group: there are none before it.
        early = group * start - (group - 1)
        part = jnp.asarray(_padded(video, early, early + group * chunk), dtype)
        part = to_channels(part, patch=config.patch)
        result, past = half.run(past, part, begins=start == 0)
        found.append(result[:, : total - start].astype(jnp.float32))
    mean, logvar = jnp.split(jnp.concatenate(found, 1), 2, axis=2)
    return Moments(mean, jnp.clip(logvar, -30.0, 20.0))


def _check_video(
    config: WanVAEConfig, shape: tuple[int, ...], tiling: Tiling | None
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
