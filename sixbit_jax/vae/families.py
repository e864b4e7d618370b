"""The autoencoders under one interface, as pipelines use them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from sixbit_jax.vae import cogvideox, hunyuan_video, streaming, wan
from sixbit_jax.vae.tiling import Tiling


@dataclass(frozen=True)
class VAEFamily:
    """What differs between autoencoders.

    Attributes:
      spatial, temporal: (config) -> pixels, and frames, that one latent stands for.
      channels: (config) -> channels of the latents.
      from_network: (config, latents) -> latents as the decoder takes them.
      for_network: (config, latents) -> latents as the denoising network takes them.
      for_picture: the same where they condition a video on a picture.
      decode: the stream of frames in [-1, 1].
      encode: mean and log variance of a video's latents.
      tiling: (config) -> diffusers' tiles.
    """

    spatial: Callable[[Any], int]
    temporal: Callable[[Any], int]
    channels: Callable[[Any], int]
    from_network: Callable[[Any, Array], Array]
    for_network: Callable[[Any, Array], Array]
    for_picture: Callable[[Any, Array], Array]
    decode: Callable[..., Iterator[Array]]
    encode: Callable[..., tuple[Array, Array]]
    tiling: Callable[[Any], Any]


FAMILIES = {
    "AutoencoderKLCogVideoX": VAEFamily(
        spatial=lambda config: config.spatial_compression_ratio,
        temporal=lambda config: config.temporal_compression_ratio,
        channels=lambda config: config.latent_channels,
        from_network=cogvideox.latents_from_model,
        for_network=cogvideox.latents_for_model,
        for_picture=partial(cogvideox.latents_for_model, picture=True),
        decode=streaming.decode_stream,
        encode=streaming.encode,
        tiling=Tiling.cogvideox,
    ),
    "AutoencoderKLHunyuanVideo": VAEFamily(
        spatial=lambda config: config.spatial_compression_ratio,
        temporal=lambda config: config.temporal_compression_ratio,
        channels=lambda config: config.latent_channels,
        from_network=hunyuan_video.latents_from_model,
        for_network=hunyuan_video.latents_for_model,
        for_picture=hunyuan_video.latents_for_model,
        decode=streaming.decode_stream,
        encode=streaming.encode,
        tiling=lambda config: Tiling(),
    ),
    "AutoencoderKLWan": VAEFamily(
        spatial=lambda config: config.scale_factor_spatial,
        temporal=lambda config: config.scale_factor_temporal,
        channels=lambda config: config.z_dim,
        from_network=wan.latents_from_model,
        for_network=wan.latents_for_model,
        for_picture=wan.latents_for_model,
        decode=wan.decode_stream,
        encode=wan.encode,
        tiling=lambda config: Tiling(),
    ),
}


def family_of(vae: Any) -> VAEFamily:
    """What is particular to an autoencoder of this package."""
    return FAMILIES[type(vae).class_name]


def decode_frames(
    vae: Any,
    latents: Float[Array, "batch f Z h w"],
    *,
    dtype: Any,
    tiled: bool = False,
) -> Iterator[UInt8[np.ndarray, "batch F H W 3"]]:
    """Decodes what a denoising network made, chunk by chunk.

    Args:
      vae: an autoencoder of this package.
      latents: as the network leaves them.
      dtype: of activations and arithmetic.
      tiled: decode overlapping tiles by diffusers' rule: less memory, other numbers.

    Yields:
      The next frames on the host, rounded as published pipelines do.
    """
    family = family_of(vae)
    scaled = family.from_network(vae.config, latents)
    tiling = family.tiling(vae.config) if tiled else None
    pending: Array | None = None
    for frames in family.decode(vae, scaled, dtype=dtype, tiling=tiling):
        # The next chunk is on its way before this one is waited for.
        if pending is not None:
            yield _on_host(pending)
        pending = _to_uint8(frames)
    if pending is not None:
        yield _on_host(pending)


_to_uint8 = jax.jit(streaming.to_uint8)


def _on_host(frames: Array) -> np.ndarray:
    return np.moveaxis(np.asarray(frames), 2, -1)
