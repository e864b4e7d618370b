"""What a run of a pipeline is, resolved and checked before anything is loaded."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from sixbit_jax.models.network import Compression, Description


@dataclass(frozen=True)
class VideoSettings:
    """One video's size and how it is sampled.

    Attributes:
      frames: of the video.
      height, width: in pixels.
      latent_shape: (F, C, H, W) of its latents.
      num_steps: denoising steps.
      guidance_scale: classifier-free guidance; 1 or less is none.
      fps: frames per second of the file.
      embedded_guidance: scale that the network itself reads; None where it reads none.
    """

    frames: int
    height: int
    width: int
    latent_shape: tuple[int, int, int, int]
    num_steps: int
    guidance_scale: float
    fps: int
    embedded_guidance: float | None = None

    @property
    def guided(self) -> bool:
        """Whether there is a second forward pass for the negative prompt."""
        return self.guidance_scale > 1.0


_MOST = {"num_steps": 1000, "frames": 10_001, "height": 16_384, "width": 16_384}


def resolve(
    description: Description,
    config: Any,
    *,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    true_cfg_scale: float | None = None,
    fps: int | None = None,
) -> VideoSettings:
    """The settings of a run; what is not given is the network's published value.

    Args:
      description: of the network, with the compression of the pipeline's VAE.
      config: of the network.
      frames, height, width: of the video.
      num_steps, fps: of the run.
      guidance_scale: of the published pipeline: what the network reads where it reads a
        scale (HunyuanVideo), classifier-free guidance elsewhere.
      true_cfg_scale: classifier-free guidance of a network that reads a scale.

    Raises:
      ValueError: for sizes that the network or the VAE cannot make, with the nearest
        that they can; lists all problems.
    """
    default = description.defaults
    frames = default.frames if frames is None else frames
    height = default.height if height is None else height
    width = default.width if width is None else width
    num_steps = default.num_steps if num_steps is None else num_steps
    scale, embedded = _scales(description, guidance_scale, true_cfg_scale)
    fps = default.fps if fps is None else fps
    problems = [
        f"{name}: expected 1 to {most}, found {value}"
        for (name, most), value in zip(
            _MOST.items(), (num_steps, frames, height, width), strict=True
        )
        if not 1 <= value <= most
    ]
    ratio = description.compression
    if frames >= 1 and (frames - 1) % ratio.temporal:
        near = round((frames - 1) / ratio.temporal) * ratio.temporal + 1
        problems.append(
            f"frames: expected {ratio.temporal} n + 1, found {frames}; the nearest is "
            f"{near}"
        )
    multiple = ratio.spatial * spatial_patch(config)
    near = [max(1, round(size / multiple)) * multiple for size in (height, width)]
    if (height, width) != tuple(near):
        problems.append(
            f"size: expected multiples of {multiple} pixels, found {width}x{height}; "
            f"the nearest is {near[1]}x{near[0]}"
        )
    if embedded is None and true_cfg_scale is not None:
        problems.append(
            "true_cfg_scale: expected none for a network that reads no guidance scale, "
            f"found {true_cfg_scale} (guidance_scale is classifier-free there)"
        )
    scales = {"guidance_scale": scale, "embedded guidance_scale": embedded}
    problems += [
        f"{name}: expected a finite number, found {value}"
        for name, value in scales.items()
        if value is not None and (not math.isfinite(value) or abs(value) > 1000)
    ]
    if not 1 <= fps <= 240:
        problems.append(f"fps: expected 1 to 240, found {fps}")
    if problems:
        raise ValueError("settings:\n  " + "\n  ".join(problems))
    shape = description.latent_shape(frames, height, width)
    extra = description.extra_frames(shape[0])
    config.token_grid(shape[0] + extra, *shape[2:])
    return VideoSettings(
        frames, height, width, shape, num_steps, float(scale), fps, embedded
    )


def _scales(
    description: Description, guidance: float | None, true_cfg: float | None
) -> tuple[float, float | None]:
    """The scale of classifier-free guidance, and that which the network reads."""
    embedded, scale = (
        description.conditions.embedded_guidance,
        description.defaults.guidance_scale,
    )
    if embedded is None:
        return (scale if guidance is None else guidance), None
    return (
        scale if true_cfg is None else true_cfg,
        float(embedded if guidance is None else guidance),
    )


def spatial_patch(config: Any) -> int:
    """Rows and columns of latents that one token stands for."""
    patch = config.patch_size
    return patch if isinstance(patch, int) else patch[-1]


def with_vae(
    description: Description, *, spatial: int, temporal: int, channels: int
) -> Description:
    """The description of a network beside its VAE.

    Raises:
      ValueError: if the network's latents are not those of the VAE.
    """
    wanted = description.conditions.latent_channels
    if channels != wanted:
        raise ValueError(
            f"vae: expected latents of {wanted} channels, as the transformer makes "
            f"them, found {channels}"
        )
    return dataclasses.replace(description, compression=Compression(spatial, temporal))


__all__ = ["VideoSettings", "resolve", "spatial_patch", "with_vae"]
