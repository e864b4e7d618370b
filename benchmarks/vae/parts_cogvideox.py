"""Operations of CogVideoX's decoder, at the sizes of one chunk."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.vae.parts import Part, normal
from sixbit_jax.vae.causal_conv import METHODS, Stream, frames_conv
from sixbit_jax.vae.cogvideox import Upsample
from sixbit_jax.vae.cogvideox_config import CogVideoXVAEConfig
from sixbit_jax.vae.group_norm import GroupNorm, SpatialNorm, group_statistics

_LATENT_FRAMES = 2


def plain_group_norm(x: jax.Array, groups: int) -> jax.Array:
    """Mean, then variance, then SiLU, as one writes it first: the peer."""
    grouped = x.astype(jnp.float32).reshape(*x.shape[:-1], groups, -1)
    mean = grouped.mean((1, 2, 3, 5), keepdims=True)
    variance = jnp.square(grouped - mean).mean((1, 2, 3, 5), keepdims=True)
    y = ((grouped - mean) * jax.lax.rsqrt(variance + 1e-6)).reshape(x.shape)
    return jax.nn.silu(y).astype(x.dtype)


def all_parts(config: CogVideoXVAEConfig, height: int, width: int) -> Iterator[Part]:
    """Convolutions, norms and upsampling of every level of one chunk."""
    frames = _LATENT_FRAMES
    widths = config.block_out_channels[::-1]
    latents = (1, _LATENT_FRAMES, height, width, config.latent_channels)
    for level, channels in enumerate(widths):
        shape = (frames, height, width, channels)
        yield from _convolutions(shape)
        yield from _norms(shape, latents, config.norm_num_groups)
        if level == len(widths) - 1:
            break
        time = level < config.time_levels
        upsample = nnx.split(Upsample(channels, time=time, rngs=nnx.Rngs(0)))
        yield Part(
            "upsample",
            "xla",
            shape,
            lambda x, upsample=upsample: nnx.merge(*upsample)((x,), Stream(None)),
            normal((1, *shape)),
            flops=18.0 * 4 * frames * height * width * channels**2,
        )
        frames *= 2 if time else 1
        height, width = 2 * height, 2 * width


def _convolutions(shape: tuple[int, ...]) -> Iterator[Part]:
    frames, height, width, channels = shape
    past = (1, frames + 2, height, width, channels)
    for method in METHODS:
        yield Part(
            "causal_conv",
            method,
            shape,
            partial(frames_conv, pad=((1, 1), (1, 1)), method=method),
            normal(past, (channels, channels, 3, 3, 3)),
            flops=54.0 * frames * height * width * channels**2,
        )


def _norms(
    shape: tuple[int, ...], latents: tuple[int, ...], groups: int
) -> Iterator[Part]:
    channels = shape[-1]
    nbytes = 2.0 * shape[0] * shape[1] * shape[2] * channels
    activation = normal((1, *shape))
    for name, kernels in (("one pass", False), ("kernels", True)):
        yield Part(
            "group_statistics",
            name,
            shape,
            partial(group_statistics, groups=groups, eps=1e-6, kernels=kernels),
            activation,
            bytes=nbytes,
        )
    plain = nnx.split(GroupNorm(channels, groups, eps=1e-6))
    for name, function in (
        ("one pass", lambda x: nnx.merge(*plain)(x)),
        ("plain", partial(plain_group_norm, groups=groups)),
    ):
        yield Part(
            "group_norm_silu", name, shape, function, activation, bytes=3 * nbytes
        )
    spatial = nnx.split(
        SpatialNorm(channels, latents[-1], groups, eps=1e-6, rngs=nnx.Rngs(0))
    )
    yield Part(
        "spatial_norm_silu",
        "one pass",
        shape,
        lambda x, z: nnx.merge(*spatial)(x, z),
        normal((1, *shape), latents),
        bytes=3 * nbytes,
    )
