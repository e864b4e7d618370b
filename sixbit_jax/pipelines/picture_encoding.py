"""Pictures to latents and to CLIP's tokens, in float32."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from sixbit_jax.pipelines.image_to_video import EncodedPictures, PictureRule, Pictures
from sixbit_jax.pipelines.pictures import Fit, picture_pixels
from sixbit_jax.pipelines.settings import VideoSettings
from sixbit_jax.reading.json_file import read_json_object
from sixbit_jax.text_encoders.clip_pixels import CLIPPixelsConfig, clip_pixels
from sixbit_jax.text_encoders.clip_vision import encode_image
from sixbit_jax.vae.families import family_of


def encode_latents(
    vae: Any,
    rule: PictureRule,
    pictures: Pictures,
    settings: VideoSettings,
    *,
    fit: Fit = "stretch",
    tiled: bool = False,
    embeds: np.ndarray | None = None,
) -> EncodedPictures:
    """Runs the autoencoder; in float32, since 16 bits are visibly worse here.

    Args:
      vae: with float32 parameters.
      rule: the rule of the pipeline.
      pictures: the pictures of one video.
      settings: its size.
      fit: how pictures of other proportions fill the frame.
      tiled: encode overlapping tiles: less memory, other numbers.
      embeds: what `encode_embeds` made, to be kept beside the latents.
    """
    pixels = partial(
        picture_pixels, height=settings.height, width=settings.width, fit=fit
    )
    last = None if pictures.last is None else pixels(pictures.last)
    video = rule.frames(pixels(pictures.first), last, settings.frames)
    family = family_of(vae)
    tiling = family.tiling(vae.config) if tiled else None
    found = family.encode(vae, video, dtype=jnp.float32, tiling=tiling)
    mean, logvar = (np.asarray(x) for x in found)
    return EncodedPictures(mean, logvar, embeds)


@partial(jax.jit, static_argnames=("graph", "kernels"))
def _embeds(params: Any, pixels: Array, *, graph: Any, kernels: bool) -> Array:
    model = nnx.merge(graph, params)
    return encode_image(model, pixels, jnp.float32, kernels=kernels)


def encode_embeds(
    encoder: Any,
    processor: CLIPPixelsConfig,
    pictures: Sequence[Pictures],
    *,
    kernels: bool,
) -> list[np.ndarray]:
    """CLIP's tokens of the pictures of each video, [1, I, E2], in float32."""
    graph, params = nnx.split(encoder)
    found = []
    for each in pictures:
        rows = [
            _embeds(
                params,
                clip_pixels(picture, processor)[None],
                graph=graph,
                kernels=kernels,
            )
            for picture in (each.first, each.last)
            if picture is not None
        ]
        found.append(np.asarray(jnp.concatenate(rows, 1)))
    return found


def read_processor(folder: Path) -> CLIPPixelsConfig:
    """The image processor of a pipeline directory.

    Raises:
      ValueError: if its file is missing or says what is not supported.
    """
    file = folder / "preprocessor_config.json"
    try:
        return CLIPPixelsConfig.from_dict(read_json_object(file))
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: expected {file.name}, found none") from error


__all__ = ["encode_embeds", "encode_latents", "read_processor"]
