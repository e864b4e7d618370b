"""What a network is given of a picture, as diffusers publishes it for each family.

A rule says which video the autoencoder encodes (`frames`) and what the network reads
of its latents (`conditions`):

* CogVideoX: the latents of the picture alone, drawn from their distribution, before
  frames of zeros, in channels behind the noisy ones.
* Wan 2.1 and Wan2.2-A14B: the latents of a video that is grey behind the picture (and
  ends with the last one), behind four channels that say which frames are given. Wan 2.1
  also reads CLIP's view of the pictures.
* Wan2.2-TI2V: the latents of the picture alone are the first frame, at timestep 0.
* HunyuanVideo: the same (token_replace), or the latents of the picture before frames of
  zeros, with a channel that says which frame is given (latent_concat; the video then
  begins after the frames of its first latent). Either way a thousandth of the picture
  is in the noise of every frame.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from sixbit_jax.models.network import Description
from sixbit_jax.pipelines.header import PipelineHeader
from sixbit_jax.pipelines.pictures import PictureError
from sixbit_jax.pipelines.settings import VideoSettings
from sixbit_jax.sampling.noise import draw, initial_noise, run_keys
from sixbit_jax.sampling.options import Conditions, Noise
from sixbit_jax.vae.families import VAEFamily

Wanted = Literal["none", "optional", "needed"]


@dataclass(frozen=True, eq=False)
class Pictures:
    """What a video begins with, and may end with; RGB (`read_picture`)."""

    first: Image.Image
    last: Image.Image | None = None


@dataclass(frozen=True, eq=False)
class EncodedPictures:
    """The pictures of one video as networks read them, on the host.

    Attributes:
      mean, logvar: those of the latents of the rule's video, float32 [1, F, Z, H, W].
      embeds: CLIP's tokens of one picture after the other, [1, I, E2], or None.
    """

    mean: np.ndarray
    logvar: np.ndarray
    embeds: np.ndarray | None = None


@dataclass(frozen=True)
class PictureRule:
    """One family's way from pictures to `Conditions`.

    Attributes:
      first, last: whether a picture is taken there.
      frames: (first, last, number of frames) -> the video that is encoded, of pixels
        [3, H, W], float32 [1, F, 3, H, W].
      conditions: (encoded, family and config of the autoencoder, shape of the latents
        as they are computed, noise on the picture) -> what the network is given.
      drawn: whether `conditions` needs noise.
      share: of the picture's latents in the initial noise of every frame.
      cut: latent frames whose frames are cut off in front of the decoded video.
    """

    first: Wanted
    last: Wanted
    frames: Callable[[np.ndarray, np.ndarray | None, int], np.ndarray]
    conditions: Callable[..., Conditions]
    drawn: bool = False
    share: float = 0.0
    cut: int = 0


def picture_rule(
    header: PipelineHeader, description: Description
) -> PictureRule | None:
    """The rule of a pipeline; None where it takes no picture.

    Raises:
      ValueError: for a network with other input channels than the families have.
    """
    spec = description.conditions
    extra, latent = spec.image_latent_channels, spec.latent_channels
    if header.pipeline_class.startswith("HunyuanVideo"):
        return _hunyuan_video_rule(extra, spec.needs_first_frame)
    cogvideox = header.pipeline_class.startswith("CogVideoX")
    wanted = latent if cogvideox else description.compression.temporal + latent
    if extra not in (0, wanted):
        raise ValueError(
            f"transformer: expected {latent} or {latent + wanted} input channels, "
            f"found {latent + extra}"
        )
    if extra and cogvideox:
        return PictureRule("needed", "none", _picture_alone, _cogvideox, drawn=True)
    if extra:
        last: Wanted = "optional"
        if spec.image_embeds_width is not None:
            # Positions of two pictures' tokens, or tokens of one picture.
            last = "none" if spec.image_embeds_length is None else "needed"
        return PictureRule("needed", last, _grey_between, _wan_channels)
    if header.options.get("expand_timesteps"):
        return PictureRule("optional", "none", _picture_alone, _first_frame)
    return None


def _hunyuan_video_rule(extra: int, replaces: bool) -> PictureRule | None:
    """By the network: channels behind the latents, or tokens of the first frame."""
    if not extra and not replaces:
        return None
    made = _first_frame if replaces else _hunyuan_video_channels
    return PictureRule(
        "needed", "none", _picture_alone, made, share=1e-3, cut=0 if replaces else 1
    )


def check_pictures(
    name: str, rule: PictureRule | None, pictures: Pictures | None
) -> None:
    """Makes sure that a pipeline is given the pictures that it takes.

    Args:
      name: the name of the pipeline, for errors.
      rule: the rule of the pipeline.
      pictures: the pictures of one video.

    Raises:
      PictureError: if there are too many or too few.
    """
    given = {
        "image": (rule.first if rule else "none", pictures is not None),
        "last_image": (
            rule.last if rule else "none",
            pictures is not None and pictures.last is not None,
        ),
    }
    problems = [
        f"{key}: expected {'a picture' if wanted == 'needed' else 'none'} for {name}, "
        f"found {'one' if there else 'none'}"
        for key, (wanted, there) in given.items()
        if wanted == ("none" if there else "needed")
    ]
    if problems:
        raise PictureError("\n  ".join(problems))


def _picture_alone(
    first: np.ndarray, last: np.ndarray | None, frames: int
) -> np.ndarray:
    del last, frames
    return first[None, None]


def _grey_between(
    first: np.ndarray, last: np.ndarray | None, frames: int
) -> np.ndarray:
    video = np.zeros((1, frames, *first.shape), np.float32)
    video[:, 0] = first
    if last is not None:
        if frames < 2:
            raise ValueError("frames: expected 5 or more for two pictures, found 1")
        video[:, -1] = last
    return video


def _cogvideox(
    encoded: EncodedPictures,
    family: VAEFamily,
    config: Any,
    shape: tuple[int, int, int, int],
    *,
    noise: Float[Array, "1 1 C H W"],
    last: bool,
) -> Conditions:
    """A sample of the picture's latents, then zeros; `ofs` is the published one."""
    del last
    sample = encoded.mean + np.exp(0.5 * encoded.logvar) * np.asarray(noise)
    first = family.for_picture(config, jnp.asarray(sample))
    rest = jnp.zeros((1, shape[0] - 1, *first.shape[2:]), first.dtype)
    # Where frames are computed in front to fill whole tokens, the picture stands before
    # them, and is cut with them.
    return Conditions(image_latents=jnp.concatenate([first, rest], 1))


def _wan_channels(
    encoded: EncodedPictures,
    family: VAEFamily,
    config: Any,
    shape: tuple[int, int, int, int],
    *,
    noise: None,
    last: bool,
) -> Conditions:
    """Which frames are given, and the latents of the video with grey in between."""
    del noise
    frames, _, height, width = shape
    given = np.zeros((1, frames, family.temporal(config), height, width), np.float32)
    given[:, 0] = 1
    if last:
        # A latent stands for as many frames; only the last of them is the picture.
        given[:, -1, -1] = 1
    latents = family.for_picture(config, jnp.asarray(encoded.mean))
    return Conditions(
        image_latents=jnp.concatenate([jnp.asarray(given), latents], 2),
        image_embeds=encoded.embeds,
    )


def _hunyuan_video_channels(
    encoded: EncodedPictures,
    family: VAEFamily,
    config: Any,
    shape: tuple[int, int, int, int],
    *,
    noise: None,
    last: bool,
) -> Conditions:
    """The picture's latents, then zeros, before a channel that says which is given."""
    del noise, last
    first = family.for_picture(config, jnp.asarray(encoded.mean))
    given = jnp.ones((1, 1, 1, *first.shape[3:]), first.dtype)
    frame = jnp.concatenate([first, given], 2)
    rest = jnp.zeros((1, shape[0] - 1, *frame.shape[2:]), first.dtype)
    return Conditions(image_latents=jnp.concatenate([frame, rest], 1))


def started(
    rule: PictureRule | None,
    conditions: Conditions | None,
    noise: Noise | Array | None,
    *,
    seed: int,
    shape: tuple[int, int, int, int],
) -> Noise | Array | None:
    """The initial latents with the rule's share of the picture, or what was given.

    Args:
      rule: of the pipeline.
      conditions: of the video.
      noise: given noise; None is that of the seed.
      seed: of the video.
      shape: of its latents.
    """
    if rule is None or not rule.share or conditions is None:
        return noise
    found = noise if isinstance(noise, Noise) else Noise(noise)
    initial = found.initial
    if initial is None:
        initial = initial_noise(seed, (1, *shape))
    picture: Any = conditions.first_frames
    if picture is None:
        picture = jnp.asarray(conditions.image_latents)[:, :1, : shape[1]]
    share = np.float32(rule.share)
    mixed = jnp.asarray(initial) * (1 - share) + picture * share
    return replace(found, initial=mixed)


def _first_frame(
    encoded: EncodedPictures,
    family: VAEFamily,
    config: Any,
    shape: tuple[int, int, int, int],
    *,
    noise: None,
    last: bool,
) -> Conditions:
    """The picture's latents in the place of the first frame."""
    del shape, noise, last
    latents = family.for_picture(config, jnp.asarray(encoded.mean))
    return Conditions(first_frames=latents)


def picture_noise(seed: int, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """What is drawn of a picture's latents in the run of a seed (CogVideoX)."""
    return draw(jax.random.fold_in(run_keys(seed)[0], 1), shape)


def conditions(
    rule: PictureRule,
    encoded: EncodedPictures,
    family: VAEFamily,
    config: Any,
    description: Description,
    settings: VideoSettings,
    *,
    last: bool,
    seed: int,
    noise: Any = None,
) -> Conditions:
    """What the network is given for one video.

    Args:
      rule, encoded: those of the pictures.
      family, config: those of the autoencoder.
      description: the description of the network.
      settings: the settings of the video.
      last: whether there is a last picture.
      seed: the seed of the noise on the picture, where the family has some.
      noise: given instead, of the shape of `encoded.mean`.
    """
    if rule.drawn and noise is None:
        noise = picture_noise(seed, encoded.mean.shape)
    if rule.drawn and np.shape(noise) != encoded.mean.shape:
        raise ValueError(
            f"picture_noise: expected {list(encoded.mean.shape)}, found "
            f"{list(np.shape(noise))}"
        )
    frames, *rest = settings.latent_shape
    shape = (frames + description.extra_frames(frames), *rest)
    noise = noise if rule.drawn else None
    return rule.conditions(encoded, family, config, shape, noise=noise, last=last)


__all__ = [
    "EncodedPictures",
    "PictureRule",
    "Pictures",
    "check_pictures",
    "conditions",
    "picture_noise",
    "picture_rule",
    "started",
]
