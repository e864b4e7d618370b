"""How much device memory a run needs, estimated before anything is loaded.

From headers alone: stored bytes of the weights, and multiples of the largest arrays
that the programs were seen to need (`benchmarks/results/h200`). It is meant to refuse
what cannot fit, not to be exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sixbit_jax.checkpoint.header import Header
from sixbit_jax.models.network import Description
from sixbit_jax.pipelines.settings import VideoSettings, spatial_patch
from sixbit_jax.policies import Policy
from sixbit_jax.sampling import delta_cache
from sixbit_jax.sampling.grid import cache_layout

# Arrays of the size of the residual stream that a block's program holds at once: 1.2 GB
# of temporaries against 0.11 GB of stream were measured for CogVideoX-5b.
_STREAMS = 12
# Arrays of the size of the decoder's widest frames that a chunk's program holds: 6.9 GB
# were measured for CogVideoX, with 0.71 GB for eight frames of its last level.
_WIDEST = 10
_CACHE_BITS = {"float32": 32.0, "bf16": 16.0, "int8": 8.0, "nvfp4": 4.5}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that each part of a run needs on the device; parts run one by one.

    Attributes:
      text: encoding prompts, and CLIP's view of pictures.
      sampling: denoising.
      vae: decoding, and encoding pictures.
      cache: of `sampling`, the delta cache.
    """

    text: int
    sampling: int
    vae: int
    cache: int

    @property
    def peak(self) -> int:
        """Of the largest part."""
        return max(self.text, self.sampling, self.vae)

    def largest(self) -> str:
        """The name of the largest part."""
        return max(("text", "sampling", "vae"), key=lambda name: getattr(self, name))


def estimate(
    headers: Mapping[str, Header],
    description: Description,
    network_config: Any,
    vae_config: Any,
    settings: VideoSettings,
    *,
    itemsize: int,
    cached_blocks: int = 0,
    cache_format: str = "bf16",
    tiled: bool = False,
    pictures: bool = False,
) -> MemoryEstimate:
    """Bytes that a run needs.

    Args:
      headers: of the components, by folder.
      description, network_config: of the transformer.
      vae_config: of the VAE.
      settings: of the run.
      itemsize: bytes of an activation.
      cached_blocks: slots of the delta cache, of all guidance branches.
      cache_format: how they are stored.
      tiled: whether the VAE decodes tiles.
      pictures: whether the video begins with one; encoding is in float32.
    """

    def weights(prefix: str) -> int:
        return sum(h.nbytes for name, h in headers.items() if name.startswith(prefix))

    patch = spatial_patch(network_config)
    frames, _, rows, columns = settings.latent_shape
    frames += description.extra_frames(frames)
    tokens = frames // description.frame_patch * rows * columns // patch**2
    prompt = description.conditions.prompt
    tokens += prompt.length if prompt.stream is not None else 0
    stream = tokens * network_config.dim * itemsize
    cache = int(
        cached_blocks * tokens * network_config.dim * _CACHE_BITS[cache_format] / 8
    )
    pixels = settings.height * settings.width * (0.25 if tiled else 1.0)
    widest = pixels * 2 * description.compression.temporal
    vae_size = 4 if pictures else itemsize
    widest *= _narrowest_channels(vae_config) * vae_size
    text = weights("text_encoder") + prompt.length * prompt.width * 64
    # CLIP is loaded after the prompts' encoder, in float32.
    view = 2 * weights("image_encoder") if pictures else 0
    return MemoryEstimate(
        text=max(text, view),
        sampling=weights("transformer") + _STREAMS * stream + cache,
        vae=int(weights("vae") + _WIDEST * widest),
        cache=cache,
    )


def cached_deltas(
    policy: Policy, description: Description, cache_format: str, *, guided: bool
) -> int:
    """Slots of the delta cache that a policy needs, of all guidance branches.

    Raises:
      ValueError: for an unknown format, and skips of blocks that there are not.
    """
    stored = delta_cache.checked_format(cache_format)
    layout = cache_layout(policy, description.stacks, stored)
    return layout.num_slots * (2 if guided else 1)


def _narrowest_channels(config: Any) -> int:
    """Channels at full resolution, in the decoder's last level."""
    values = vars(config)
    if "block_out_channels" in values:
        return int(config.block_out_channels[0])
    width = values.get("decoder_base_dim") or config.base_dim
    return int(width * config.dim_mult[0] / (config.patch_size or 1) ** 2)


def device_memory() -> int | None:
    """Bytes that programs may use on the default device; None where nobody says."""
    stats = jax.devices()[0].memory_stats()
    if not stats:
        return None
    return int(stats.get("bytes_limit", 0)) or None


def peak_memory() -> int | None:
    """Bytes in use at the worst moment so far on the default device, or None."""
    stats = jax.devices()[0].memory_stats()
    return int(stats["peak_bytes_in_use"]) if stats else None


def check(found: MemoryEstimate, available: int | None) -> None:
    """Refuses a run that cannot fit, with what would help.

    Raises:
      MemoryError: names what is needed, what there is, and the options that need less.
    """
    if available is None or found.peak <= available:
        return
    part = found.largest()
    help_with = {
        "text": "`sixbit convert --encoder-weights nvfp4`",
        "sampling": "`sixbit convert --weights nvfp4`, fewer --frames, a smaller "
        "--size, a policy whose blocks skip together, --cache-format nvfp4",
        "vae": "--tiled, a smaller --size",
    }
    raise MemoryError(
        f"expected at most {_gigabytes(available)} of device memory, found that "
        f"{part} needs about {_gigabytes(found.peak)}"
        + (f" ({_gigabytes(found.cache)} of it the delta cache)" if found.cache else "")
        + f"; what needs less: {help_with[part]}"
    )


def _gigabytes(size: int) -> str:
    return f"{np.ceil(size / 1e8) / 10:.1f} GB"


__all__ = [
    "MemoryEstimate",
    "cached_deltas",
    "check",
    "device_memory",
    "estimate",
    "peak_memory",
]
