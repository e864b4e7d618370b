"""The small video autoencoder: CogVideoX's architecture, and its training loss."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from sixbit_jax.demo.latent import render, world
from sixbit_jax.vae.causal_conv import Stream
from sixbit_jax.vae.cogvideox import AutoencoderKLCogVideoX
from sixbit_jax.vae.cogvideox_config import CogVideoXVAEConfig

CONFIG = CogVideoXVAEConfig(
    block_out_channels=(32, 64, 64, 64),
    layers_per_block=1,
    norm_num_groups=8,
    latent_channels=16,
    sample_height=world.SIZE,
    sample_width=world.SIZE,
    scaling_factor=1.0,
)
# The first chunk of a video. Later chunks see what its later frames see: the frames
# before them; training on two chunks doubles the program for nothing.
TRAIN_FRAMES = 9


def new(seed: int = 0) -> AutoencoderKLCogVideoX:
    """An untrained autoencoder, float32."""

    @nnx.jit
    def make() -> AutoencoderKLCogVideoX:
        return AutoencoderKLCogVideoX(CONFIG, rngs=nnx.Rngs(seed))

    return make()


def encode(
    vae: AutoencoderKLCogVideoX, video: Float[Array, "batch F 3 H W"]
) -> tuple[Array, Array]:
    """Mean and log variance of the latents, [batch, f, h, w, Z], in one program."""
    x = jnp.moveaxis(video, 2, -1)
    state, start, parts = None, 0, []
    for length in vae.encode_lengths(x.shape[1]):
        stream = Stream(state)
        parts.append(vae.encode_chunk(x[:, start : start + length], stream))
        state = stream.state()
        start += length
    mean, logvar = jnp.split(jnp.concatenate(parts, 1).astype(jnp.float32), 2, -1)
    return mean, jnp.clip(logvar, -30.0, 20.0)


def decode(
    vae: AutoencoderKLCogVideoX, z: Float[Array, "batch f h w Z"]
) -> Float[Array, "batch F 3 H W"]:
    """Frames of latents, in one program."""
    state, start, parts = None, 0, []
    for length in vae.decode_lengths(z.shape[1]):
        stream = Stream(state)
        parts.append(vae.decode_chunk(z[:, start : start + length], stream))
        state = stream.state()
        start += length
    return jnp.moveaxis(jnp.concatenate(parts, 1), -1, 2)


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """Numbers of the loss.

    Attributes:
      batch: videos per step.
      frames: of each.
      size: rows and columns of a frame.
      gradient_weight: of the L1 of differences between neighbours, against the L1 of
        pixels: edges are where blur hides.
      square_weight: of the mean square, which is what PSNR counts.
      kl_weight: of the mean divergence of a latent from the unit normal.
      dtype: compute dtype.
    """

    batch: int = 32
    frames: int = TRAIN_FRAMES
    size: int = world.SIZE
    gradient_weight: float = 0.5
    square_weight: float = 2.0
    kl_weight: float = 1e-4
    dtype: str = "bfloat16"


def loss(
    graph: Any, settings: LossSettings, params: Any, data: Any, key: Key[Array, ""]
) -> tuple[Array, dict[str, Array]]:
    """Reconstruction and divergence of a batch that is rendered from `key`."""
    del data
    keys = jax.random.split(key, 4)
    rows = world.sample_rows(keys[0], settings.batch)
    video = render.make_videos(
        keys[1], rows, frames=settings.frames, size=settings.size, anywhere=True
    )
    backwards = jax.random.bernoulli(keys[3], 0.5, (settings.batch, 1, 1, 1, 1))
    video = jnp.where(backwards, video[:, ::-1], video)
    dtype = jnp.dtype(settings.dtype)
    vae = nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype), params))
    mean, logvar = encode(vae, video.astype(dtype))
    noise = jax.random.normal(keys[2], mean.shape)
    z = mean + jnp.exp(0.5 * logvar) * noise
    made = decode(vae, z.astype(dtype)).astype(jnp.float32)
    difference = made - video
    pixels = jnp.abs(difference).mean()
    square = jnp.square(difference).mean()
    steps = [jnp.abs(jnp.diff(difference, axis=axis)).mean() for axis in (1, 3, 4)]
    edges = jnp.stack(steps).mean()
    divergence = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean()
    total = pixels + settings.square_weight * square
    total += settings.gradient_weight * edges + settings.kl_weight * divergence
    named = {"l1": pixels, "edges": edges, "kl": divergence}
    named["psnr"] = 10 * jnp.log10(4 / jnp.maximum(square, 1e-9))
    named["latent_std"] = jnp.std(mean)
    return total, named


@partial(jax.jit, static_argnames=("graph", "dtype"))
def reconstruct(graph: Any, params: Any, video: Array, *, dtype: str) -> Any:
    """What a video looks like after encoder (its mean) and decoder, and the mean."""
    kind = jnp.dtype(dtype)
    vae = nnx.merge(graph, jax.tree.map(lambda x: x.astype(kind), params))
    mean, _ = encode(vae, video.astype(kind))
    return decode(vae, mean.astype(kind)).astype(jnp.float32), mean


def make_decoder(graph: Any, scale: float, dtype: str) -> Any:
    """`(params, latents [batch, f, Z, h, w]) -> frames`, made to be jitted.

    Args:
      graph: of the autoencoder.
      scale: the latents are those of the transformer, `scale` times as large.
      dtype: compute dtype.
    """
    kind = jnp.dtype(dtype)

    def decoded(params: Any, latents: Array) -> Array:
        model = nnx.merge(graph, jax.tree.map(lambda x: x.astype(kind), params))
        z = jnp.moveaxis(latents.astype(jnp.float32) / scale, 2, -1)
        return decode(model, z.astype(kind)).astype(jnp.float32)

    return decoded


def psnr(a: Array, b: Array) -> Float[Array, " batch"]:
    """Of each video, in dB, pixels in [-1, 1] clipped."""
    error = jnp.square(jnp.clip(a, -1, 1) - b).mean(axis=(1, 2, 3, 4))
    return 10 * jnp.log10(4 / jnp.maximum(error, 1e-10))
