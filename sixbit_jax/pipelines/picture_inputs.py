"""The pictures of a pipeline's videos: read, checked, encoded, as conditions."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sixbit_jax.checkpoint import CheckpointError
from sixbit_jax.pipelines import image_to_video, picture_encoding
from sixbit_jax.pipelines.image_to_video import EncodedPictures, Pictures
from sixbit_jax.pipelines.pictures import (
    Fit,
    Picture,
    PictureError,
    read_picture,
    size_of_video,
)
from sixbit_jax.pipelines.progress import Stopped, Tell, nothing
from sixbit_jax.pipelines.settings import VideoSettings, spatial_patch
from sixbit_jax.sampling.options import Conditions
from sixbit_jax.vae.families import FAMILIES

IMAGE_ENCODER, IMAGE_PROCESSOR, VAE = "image_encoder", "image_processor", "vae"


class PictureInputs:
    """What a `VideoPipeline` does with pictures.

    Args:
      pipe: the pipeline; its components are used one after the other.

    Raises:
      CheckpointError: if a network reads CLIP's view of pictures, and the pipeline has
        no CLIP.
      ValueError: for a network with other inputs than the families have.
    """

    def __init__(self, pipe: Any):
        self.pipe = pipe
        self.description = pipe.description
        self.rule = image_to_video.picture_rule(pipe.header, pipe.description)
        self.clip = self.description.conditions.image_embeds_width is not None
        missing = [
            f"{name}: expected {pipe.path / name} for a network that reads CLIP's view "
            "of pictures"
            for name in (IMAGE_ENCODER, IMAGE_PROCESSOR)
            if self.clip and not (pipe.path / name).is_dir()
        ]
        if missing:
            raise CheckpointError("\n  ".join([f"{pipe.path}:", *missing]))

    def read(self, image: Picture | None, last_image: Picture | None) -> Any:
        """`Pictures` of one video, or None without.

        Raises:
          PictureError: for files that are no pictures, and pictures that the pipeline
            does not take or lacks.
        """
        if image is None and last_image is not None:
            raise PictureError("image: expected one beside last_image, found none")
        found = None
        if image is not None:
            last = None if last_image is None else read_picture(last_image)
            found = Pictures(read_picture(image), last)
        self.check(found)
        return found

    def check(self, pictures: Pictures | None) -> None:
        """Makes sure that the pictures of a video are what is taken.

        Raises:
          PictureError: if they are not.
        """
        name = f"{self.pipe.header.pipeline_class} ({self.pipe.path})"
        image_to_video.check_pictures(name, self.rule, pictures)

    def size(self, pictures: Pictures, area: int | None) -> tuple[int, int]:
        """(height, width) of a video for which no size was asked."""
        return size_of_video(
            self.description,
            pictures.first,
            multiple=self.description.compression.spatial
            * spatial_patch(self.pipe.network_config),
            area=area,
        )

    def encode(
        self,
        given: Sequence[Pictures],
        settings: VideoSettings,
        *,
        fit: Fit = "stretch",
        tiled: bool = False,
        tell: Tell = nothing,
    ) -> list[EncodedPictures]:
        """The pictures of several videos as the network reads them."""
        pipe, rule = self.pipe, self.rule
        assert rule is not None, "`check` passed"
        tell("picture", 0, len(given))
        embeds: Sequence[np.ndarray | None] = [None] * len(given)
        if self.clip:
            processor = picture_encoding.read_processor(pipe.path / IMAGE_PROCESSOR)
            with pipe.component(IMAGE_ENCODER, dtype=jnp.float32) as encoder:
                embeds = picture_encoding.encode_embeds(
                    encoder, processor, given, kernels=pipe.kernels
                )
        found = []
        options = {"fit": fit, "tiled": tiled}
        with pipe.component(VAE, dtype=jnp.float32) as vae:
            for pictures, rows in zip(given, embeds, strict=True):
                made = picture_encoding.encode_latents(
                    vae, rule, pictures, settings, embeds=rows, **options
                )
                found.append(made)
                if tell("picture", len(found), len(given)):
                    raise Stopped("stopped while encoding pictures")
        return found

    @property
    def cut_frames(self) -> int:
        """Frames of a decoded video that come before it."""
        cut = 0 if self.rule is None else self.rule.cut
        return cut * self.description.compression.temporal

    def started(
        self,
        noise: Any,
        conditions: Conditions | None,
        seed: int,
        settings: VideoSettings,
    ) -> Any:
        """The noise of a run; see `image_to_video.started`."""
        shape = settings.latent_shape
        return image_to_video.started(
            self.rule, conditions, noise, seed=seed, shape=shape
        )

    def conditions(
        self,
        seeds: Sequence[int],
        settings: VideoSettings,
        pictures: Sequence[Pictures] | None,
        *,
        noise: Any = None,
        **options: Any,
    ) -> list[Conditions | None]:
        """What the network is given of the pictures of each video.

        Args:
          seeds: the seeds of the videos.
          settings: the settings of all of them.
          pictures: the pictures of each; None without. The same object is encoded once.
          noise: on the pictures, instead of drawn from the seeds.
          options: the options of `encode`.
        """
        if pictures is None:
            self.check(None)
            return [None] * len(seeds)
        distinct = list({id(p): p for p in pictures}.values())
        for each in distinct:
            self.check(each)
        encoded = self.encode(distinct, settings, **options)
        found = {id(p): e for p, e in zip(distinct, encoded, strict=True)}
        rule = self.rule
        assert rule is not None, "`check` passed"
        return [
            image_to_video.conditions(
                rule,
                found[id(given)],
                FAMILIES[self.pipe.headers[VAE].model_class],
                self.pipe.vae_config,
                self.description,
                settings,
                last=given.last is not None,
                seed=seed,
                noise=noise,
            )
            for seed, given in zip(seeds, pictures, strict=True)
        ]


__all__ = ["PictureInputs"]
