"""`load_pipeline`: a converted diffusers root as a function from prompt to video."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from sixbit_jax import components
from sixbit_jax.checkpoint import CheckpointError, load
from sixbit_jax.checkpoint.header import Header, read_header
from sixbit_jax.models.network import Description
from sixbit_jax.pipelines import memory
from sixbit_jax.pipelines.families import PIPELINES
from sixbit_jax.pipelines.header import PipelineHeader, read_pipeline_header
from sixbit_jax.pipelines.image_to_video import Pictures
from sixbit_jax.pipelines.picture_inputs import PictureInputs
from sixbit_jax.pipelines.pictures import Fit, Picture
from sixbit_jax.pipelines.progress import Stopped, Tell, nothing
from sixbit_jax.pipelines.prompts import EncodedPrompts, encode_prompts
from sixbit_jax.pipelines.settings import VideoSettings, resolve, with_vae
from sixbit_jax.pipelines.video import Clock, Video
from sixbit_jax.policies import Policy
from sixbit_jax.sampling.api import sample
from sixbit_jax.sampling.options import Conditions, Execution, Guidance, Noise, Prompt
from sixbit_jax.sampling.pair import LowNoise
from sixbit_jax.sampling.schedulers.choice import choose_scheduler
from sixbit_jax.text_encoders.tokenizers import load_tokenizer
from sixbit_jax.vae.families import FAMILIES, decode_frames

TRANSFORMER, SECOND, VAE = "transformer", "transformer_2", "vae"
TEXT_ENCODER, TOKENIZER = "text_encoder", "tokenizer"
_NEEDED = (TRANSFORMER, VAE, TEXT_ENCODER)


class VideoPipeline:
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
        self.path = Path(path)
        self.header: PipelineHeader = read_pipeline_header(self.path)
        self.headers: dict[str, Header] = {
            name: read_header(self.path / name) for name in self.header.components
        }
        self._check_components()
        if unknown := sorted(set(keep) - set(self.headers)):
            raise ValueError(
                f"keep: expected some of {', '.join(self.headers)}; found "
                f"{', '.join(unknown)}"
            )
        if dtype is None:
            dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        self.dtype = jnp.dtype(dtype)
        self.kernels = jax.default_backend() == "gpu"
        self._keep, self._loaded = set(keep), {}
        self._load_seconds = 0.0
        self.rule = PIPELINES[self.header.pipeline_class]
        self.network_config, network = self._configured(TRANSFORMER)
        self.vae_config, vae = self._configured(VAE)
        family = FAMILIES[vae.class_name]
        self.description: Description = with_vae(
            network.describe(self.network_config),
            spatial=family.spatial(self.vae_config),
            temporal=family.temporal(self.vae_config),
            channels=family.channels(self.vae_config),
        )
        self._inputs = PictureInputs(self)

    def _check_components(self) -> None:
        if self.header.pipeline_class not in PIPELINES:
            raise CheckpointError(
                f"{self.path}: expected one of {', '.join(sorted(PIPELINES))}; found "
                f"{self.header.pipeline_class!r}"
            )
        problems = [
            f"{name}: expected this component"
            + (f", left out: {why}" if (why := self.header.missing.get(name)) else "")
            for name in _NEEDED
            if name not in self.header.components
        ]
        problems += [
            f"{name}: expected {self.path / name}"
            for name in (TOKENIZER,)
            if not (self.path / name).is_dir()
        ]
        if problems:
            raise CheckpointError("\n  ".join([f"{self.path}:", *problems]))

    def _configured(self, name: str) -> tuple[Any, Any]:
        """The configuration and the class of a component."""
        header = self.headers[name]
        config_type, model = components.get(header.model_class)
        return config_type.from_dict(header.config), model

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

    @contextlib.contextmanager
    def component(
        self, name: str, *, dtype: Any = None, mesh: Mesh | None = None
    ) -> Iterator[Any]:
        """A component on its device or mesh, for the length of a `with`."""
        key = (name, None if dtype is None else jnp.dtype(dtype).name, mesh)
        if key in self._loaded:
            yield self._loaded[key]
            return
        began = time.perf_counter()
        model = jax.block_until_ready(load(self.path / name, dtype=dtype, mesh=mesh)[0])
        self._load_seconds += time.perf_counter() - began
        if name in self._keep:
            self._loaded[key] = model
        yield model

    def free(self) -> None:
        """Drops the components that were kept."""
        self._loaded.clear()

    def encode(self, prompts: Sequence[str], *, tell: Tell = nothing) -> EncodedPrompts:
        """Embeddings of prompts; each text is encoded once.

        Raises:
          sixbit_jax.text_encoders.tokenizers.TokenizerError: if the tokenizer's files
            are missing, damaged, or another model's.
        """
        tokenizer = load_tokenizer(self.path / TOKENIZER)
        texts = list(dict.fromkeys(prompts))
        count = 0

        def each(prompt: str) -> None:
            nonlocal count
            count += 1
            if tell("text", count, len(texts)):
                raise Stopped("stopped while encoding prompts")

        tell("text", 0, len(texts))
        with self.component(TEXT_ENCODER, dtype=self.dtype) as encoder:
            return encode_prompts(
                encoder,
                tokenizer,
                texts,
                rule=self.rule,
                length=self.description.conditions.prompt.length,
                dtype=self.dtype,
                kernels=self.kernels,
                each=each,
            )

    @contextlib.contextmanager
    def sampler(
        self,
        settings: VideoSettings,
        *,
        scheduler: str | None = None,
        shift: float | None = None,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[float] | None = None,
        policy: Policy | Callable[[Any], Policy] | None = None,
        execution: Execution | None = None,
        guidance_scale_2: float | None = None,
        mesh: Mesh | None = None,
    ) -> Iterator[Callable[..., Any]]:
        """The transformer (or both) on the device, as a function for many prompts.

        With a mesh (`sixbit_jax.make_mesh`), on all of its devices.

        Yields:
          (prompt embeddings, negative ones or None, *, seed, noise, on_step,
          conditions) -> `SampleResult`.
        """
        size = (settings.height, settings.width)
        chosen = choose_scheduler(
            self.description,
            self.header.scheduler,
            name=scheduler,
            shift=shift,
            size=size,
            sigmas=sigmas,
            timesteps=timesteps,
        )
        execution = Execution(dtype=self.dtype) if execution is None else execution
        with contextlib.ExitStack() as stack:
            model = stack.enter_context(self.component(TRANSFORMER, mesh=mesh))
            low = None
            if SECOND in self.headers:
                boundary = self.header.options.get("boundary_ratio")
                if boundary is None:
                    raise CheckpointError(
                        f"{self.path}: expected boundary_ratio beside {SECOND}, found "
                        "none"
                    )
                second = stack.enter_context(self.component(SECOND, mesh=mesh))
                low = LowNoise(second, boundary, guidance_scale_2)
            if callable(policy) and not isinstance(policy, Policy):
                policy = policy(model)

            def run(
                embeds: np.ndarray,
                negative: np.ndarray | None,
                *,
                seed: int = 0,
                noise: Noise | Array | None = None,
                on_step: Callable[[int, int], bool | None] | None = None,
                conditions: Conditions | None = None,
            ) -> Any:
                given = None if negative is None else jnp.asarray(negative)[None]
                return sample(
                    model,
                    chosen,
                    Prompt(jnp.asarray(embeds)[None], given),
                    latent_shape=settings.latent_shape,
                    num_steps=settings.num_steps,
                    guidance=Guidance(settings.guidance_scale),
                    conditions=replace(conditions or Conditions(), low_noise=low),
                    policy=policy,
                    execution=execution,
                    seed=seed,
                    noise=noise,
                    on_step=on_step,
                    mesh=mesh,
                )

            yield run

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
        return np.concatenate(parts)[: settings.frames]

    def __call__(
        self,
        prompt: str,
        *,
        image: Picture | None = None,
        last_image: Picture | None = None,
        negative_prompt: str = "",
        seed: int = 0,
        noise: Noise | Array | None = None,
        tell: Tell = nothing,
        tiled: bool = False,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        **sampling: Any,
    ) -> Video:
        """Makes one video.

        ```python
        pipe = sixbit_jax.load_pipeline("cogvideox-5b")
        video = pipe("a red fox runs through snow", seed=3)
        ```

        Args:
          prompt, negative_prompt: text; the negative one is used where there is
            guidance.
          image, last_image: picture files, or pictures of Pillow, that the video
            begins and ends with; the family says which it takes.
          seed: of the noise.
          noise: initial latents instead of drawn ones, [1, F, C, H, W].
          tell: called with (part, done, all); a true result ends the run.
          tiled: decode in tiles: less memory, other numbers.
          frames, height, width, num_steps, guidance_scale: None is the published
            value of the network; the size then follows the picture where the
            published pipelines let it.
          sampling: `scheduler`, `shift`, `sigmas` or `timesteps` (whose number is
            that of the steps), `policy`, `execution`, `guidance_scale_2`,
            `mesh` of `sampler`,
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
        jobs: Sequence[tuple[str, int]],
        settings: VideoSettings,
        *,
        pictures: Sequence[Pictures] | None = None,
        picture_noise: Any = None,
        fit: Fit = "stretch",
        negative_prompt: str = "",
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
        clock = Clock(lambda: self._load_seconds)
        texts = [prompt for prompt, _ in jobs]
        texts += [negative_prompt] if settings.guided else []
        encoded = self.encode(texts, tell=tell)
        clock.ends("text")
        negative = encoded.embeds[negative_prompt] if settings.guided else None
        given = self._inputs.conditions(
            [seed for _, seed in jobs],
            settings,
            pictures,
            noise=picture_noise,
            fit=fit,
            tiled=tiled,
            tell=tell,
        )
        if pictures is not None:
            clock.ends("picture")
        with contextlib.ExitStack() as held:
            run = held.enter_context(self.sampler(settings, **sampling))
            clock.ends("sampling")
            for (prompt, seed), conditions in zip(jobs, given, strict=True):
                result = run(
                    encoded.embeds[prompt],
                    negative,
                    seed=seed,
                    noise=noise,
                    conditions=conditions,
                    on_step=lambda done, count: tell("sampling", done, count),
                )
                latents = jax.block_until_ready(result.latents)
                if result.steps_done < settings.num_steps:
                    raise Stopped(f"stopped after {int(result.steps_done)} steps")
                if not bool(jnp.isfinite(latents).all()):
                    raise FloatingPointError(f"{self.path}: the latents are not finite")
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
                    prompt=prompt,
                    negative_prompt=negative_prompt if settings.guided else "",
                    seed=seed,
                    settings=settings,
                    trace=jax.tree.map(np.asarray, result.trace),
                    seconds=clock.read(),
                    cut=encoded.cut.get(prompt, ""),
                )
                clock.restart("sampling", "vae", "load")


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
    """
    return VideoPipeline(path, keep=keep, dtype=dtype)


__all__ = ["Stopped", "Video", "VideoPipeline", "load_pipeline"]
