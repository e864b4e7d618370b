"""`load_pipeline`: a converted diffusers root as a function from prompt to video."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from sixbit_jax.models.network import Description
from sixbit_jax.pipelines import memory
from sixbit_jax.pipelines.denoise import denoiser
from sixbit_jax.pipelines.image_to_video import Pictures
from sixbit_jax.pipelines.loading import TRANSFORMER, VAE, Components
from sixbit_jax.pipelines.picture_inputs import PictureInputs
from sixbit_jax.pipelines.pictures import Fit, Picture
from sixbit_jax.pipelines.progress import Stopped, Tell, nothing
from sixbit_jax.pipelines.prompts import EncodedPrompts, PromptEmbeds, encode_all
from sixbit_jax.pipelines.settings import VideoSettings, resolve, with_vae
from sixbit_jax.pipelines.video import Clock, Video
from sixbit_jax.sampling.options import Noise
from sixbit_jax.vae.families import FAMILIES, decode_frames


class VideoPipeline(Components):
    """Prompt to video with a converted pipeline; see `load_pipeline`.

    Components are loaded when they are needed and freed after their part, so that the
    peak of memory is that of the largest; `keep` names those that stay.

    Args:
      path: the directory.
      keep: folders of components that stay on the device once loaded.
      dtype: of parameters and arithmetic; None: bfloat16, and float32 on CPUs, where
        it is faster.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        keep: Sequence[str] = (),
        dtype: Any = None,
    ):
        super().__init__(path, keep=keep, dtype=dtype)
        self.network_config, network = self.configured(TRANSFORMER)
        self.vae_config, vae = self.configured(VAE)
        family = FAMILIES[vae.class_name]
        self.description: Description = with_vae(
            network.describe(self.network_config),
            spatial=family.spatial(self.vae_config),
            temporal=family.temporal(self.vae_config),
            channels=family.channels(self.vae_config),
        )
        self._inputs = PictureInputs(self)

    def memory(
        self,
        settings: VideoSettings,
        *,
        cached_blocks: int = 0,
        cache_format: str = "bf16",
        tiled: bool = False,
        pictures: bool = False,
    ) -> memory.MemoryEstimate:
        """Bytes of device memory that a run needs; see `memory.estimate`."""
        return memory.estimate(
            self.headers,
            self.description,
            self.network_config,
            self.vae_config,
            settings,
            itemsize=self.dtype.itemsize,
            cached_blocks=cached_blocks,
            cache_format=cache_format,
            tiled=tiled,
            pictures=pictures,
        )

    def settings(
        self,
        *,
        pictures: Pictures | None = None,
        area: int | None = None,
        **given: Any,
    ) -> VideoSettings:
        """Size, steps and guidance of a run, checked; see `settings.resolve`.

        Args:
          pictures: choose the size where none is given (`pictures.size_of_video`).
          area: of that size, in pixels.
          given: arguments of `settings.resolve`.
        """
        if pictures is not None and given.get("height") is given.get("width") is None:
            given["height"], given["width"] = self._inputs.size(pictures, area)
        return resolve(self.description, self.network_config, **given)

    def encode(self, prompts: Sequence[str], *, tell: Tell = nothing) -> EncodedPrompts:
        """Embeddings of prompts; each text is encoded once.

        Raises:
          sixbit_jax.text_encoders.tokenizers.TokenizerError: if the tokenizer's files
            are missing, damaged, or another model's.
        """
        return encode_all(self, prompts, tell)

    def sampler(
        self, settings: VideoSettings, **sampling: Any
    ) -> contextlib.AbstractContextManager[Callable[..., Any]]:
        """The transformer (or both) on the device, as a function for many prompts.

        Args:
          settings: of the videos.
          sampling: `scheduler`, `shift`, `sigmas`, `timesteps`, `policy` (or a function
            of the network that makes it), `execution`, `guidance_scale_2`, `mesh`
            (`sixbit_jax.make_mesh`: the devices that share the denoising).

        Returns:
          A context of (embeddings, negative ones or None, *, seed, noise, on_step,
          conditions) -> `SampleResult`.
        """
        return denoiser(self, self.description, settings, **sampling)

    def decode(
        self,
        latents: Float[Array, "1 F C H W"],
        settings: VideoSettings,
        *,
        tiled: bool = False,
        tell: Tell = nothing,
    ) -> UInt8[np.ndarray, "frames height width 3"]:
        """Pixels of one video's latents."""
        parts, count = [], 0
        tell("vae", 0, settings.frames)
        with self.component(VAE, dtype=self.dtype) as vae:
            for frames in decode_frames(vae, latents, dtype=self.dtype, tiled=tiled):
                parts.append(frames[0])
                count += len(frames[0])
                if tell("vae", count, settings.frames):
                    raise Stopped("stopped while decoding")
        return np.concatenate(parts)[self._inputs.cut_frames : settings.frames]

    def __call__(
        self,
        prompt: str | PromptEmbeds,
        *,
        image: Picture | None = None,
        last_image: Picture | None = None,
        negative_prompt: str | PromptEmbeds = "",
        seed: int = 0,
        noise: Noise | Array | None = None,
        tell: Tell = nothing,
        tiled: bool = False,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        true_cfg_scale: float | None = None,
        **sampling: Any,
    ) -> Video:
        """Makes one video.

        ```python
        pipe = sixbit_jax.load_pipeline("cogvideox-5b")
        video = pipe("a red fox runs through snow", seed=3)
        ```

        Args:
          prompt, negative_prompt: text, or embeddings that were made elsewhere; the
            negative one is used where there is classifier-free guidance.
          image, last_image: picture files, or pictures of Pillow, that the video
            begins and ends with; the family says which it takes.
          seed: of the noise.
          noise: initial latents instead of drawn ones, [1, F, C, H, W].
          tell: called with (part, done, all); a true result ends the run.
          tiled: decode in tiles: less memory, other numbers.
          frames, height, width, num_steps, guidance_scale: None is the published
            value of the network; the size then follows the picture where the
            published pipelines let it.
          true_cfg_scale: classifier-free guidance of networks that read the
            `guidance_scale` themselves (HunyuanVideo); None or 1 runs without.
          sampling: `scheduler`, `shift`, `sigmas` or `timesteps` (whose number is
            that of the steps), `policy`, `execution`, `guidance_scale_2`, `mesh` of
            `sampler`,
            `fit` and `picture_noise` of `videos`.

        Raises:
          ValueError: for sizes and options that the network does not have.
          Stopped: where `tell` ended the run.
        """
        given = sampling.get("sigmas") or sampling.get("timesteps")
        if num_steps is None and given is not None:
            num_steps = len(given)
        pictures = self.pictures(image, last_image)
        settings = self.settings(
            pictures=pictures,
            frames=frames,
            height=height,
            width=width,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            true_cfg_scale=true_cfg_scale,
        )
        (video,) = self.videos(
            [(prompt, seed)],
            settings,
            pictures=None if pictures is None else [pictures],
            negative_prompt=negative_prompt,
            noise=noise,
            tell=tell,
            tiled=tiled,
            **sampling,
        )
        return video

    def pictures(
        self, image: Picture | None, last_image: Picture | None = None
    ) -> Pictures | None:
        """Pictures of one video, read and checked; see `PictureInputs.read`."""
        return self._inputs.read(image, last_image)

    def videos(
        self,
        jobs: Sequence[tuple[str | PromptEmbeds, int]],
        settings: VideoSettings,
        *,
        pictures: Sequence[Pictures] | None = None,
        picture_noise: Any = None,
        fit: Fit = "stretch",
        negative_prompt: str | PromptEmbeds = "",
        noise: Noise | Array | None = None,
        tell: Tell = nothing,
        tiled: bool = False,
        **sampling: Any,
    ) -> Iterator[Video]:
        """Makes several videos, one after the other; the encoder is loaded once.

        With one job the transformer is freed before its latents are decoded; with
        several it stays until the last.

        Args:
          jobs: (prompt, seed) of each.
          settings: of all of them.
          pictures: of each job (`self.pictures`); None without. The same object is
            encoded once.
          picture_noise: what is drawn of the picture's latents, where the family draws
            (CogVideoX); None draws it from the seed.
          fit: how pictures of other proportions fill the frame: "stretch", as
            published, or "crop".
          negative_prompt, noise, tell, tiled, sampling: as in `__call__`.

        Yields:
          Every video as soon as it is decoded.
        """
        clock = Clock(lambda: self.load_seconds)
        negative = negative_prompt if settings.guided else None
        wanted = [*(prompt for prompt, _ in jobs), negative]
        encoded = self.encode([t for t in wanted if isinstance(t, str)], tell=tell)
        clock.ends("text")
        seeds = [seed for _, seed in jobs]
        options: Any = {"noise": picture_noise, "fit": fit, "tiled": tiled}
        given = self._inputs.conditions(seeds, settings, pictures, tell=tell, **options)
        if pictures is not None:
            clock.ends("picture")
        with contextlib.ExitStack() as held:
            run = held.enter_context(self.sampler(settings, **sampling))
            clock.ends("sampling")
            for (prompt, seed), conditions in zip(jobs, given, strict=True):
                result = run(
                    encoded.of(prompt),
                    None if negative is None else encoded.of(negative),
                    seed=seed,
                    noise=self._inputs.started(noise, conditions, seed, settings),
                    conditions=conditions,
                    on_step=lambda done, count: tell("sampling", done, count),
                )
                latents = self._finished(result, settings)
                if len(jobs) == 1:
                    # The VAE gets the transformer's memory.
                    del run
                    held.close()
                clock.ends("sampling")
                pixels = self.decode(latents, settings, tiled=tiled, tell=tell)
                clock.ends("vae")
                yield Video(
                    frames=pixels,
                    fps=settings.fps,
                    prompt=_text(prompt),
                    negative_prompt=_text(negative),
                    seed=seed,
                    settings=settings,
                    trace=jax.tree.map(np.asarray, result.trace),
                    seconds=clock.read(),
                    cut=encoded.cut.get(_text(prompt), ""),
                )
                clock.restart("sampling", "vae", "load")

    def _finished(self, result: Any, settings: VideoSettings) -> Array:
        """The latents of a run that was not stopped."""
        latents = jax.block_until_ready(result.latents)
        if result.steps_done < settings.num_steps:
            raise Stopped(f"stopped after {int(result.steps_done)} steps")
        if not bool(jnp.isfinite(latents).all()):
            raise FloatingPointError(f"{self.path}: the latents are not finite")
        return latents


def _text(prompt: str | PromptEmbeds | None) -> str:
    """What is known of a prompt's words."""
    return prompt if isinstance(prompt, str) else ""


def load_pipeline(
    path: str | os.PathLike, *, keep: Sequence[str] = (), dtype: Any = None
) -> VideoPipeline:
    """A converted diffusers root as a function from prompt to video.

    Nothing but headers is read until a part is needed.

    Args:
      path: a directory that `sixbit convert` made of a diffusers root.
      keep: components that stay on the device once loaded ("transformer",
        "text_encoder", "vae"); others are freed after their part.
      dtype: of parameters and arithmetic; None: bfloat16, float32 on CPUs.

    Raises:
      sixbit_jax.checkpoint.CheckpointError: if components are missing or damaged.
      ValueError: for an unknown component in `keep`.

    >>> import sixbit_jax
    >>> pipe = sixbit_jax.load_pipeline("wan2.1")  # made by `sixbit convert`
    >>> video = pipe("a red fox", num_steps=2, frames=5, height=32, width=48)
    >>> video.frames.shape, video.frames.dtype
    ((5, 32, 48, 3), dtype('uint8'))
    """
    return VideoPipeline(path, keep=keep, dtype=dtype)


__all__ = ["Stopped", "Video", "VideoPipeline", "load_pipeline"]
