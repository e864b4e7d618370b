"""Real videos there and back through every autoencoder, small, with random weights.

CogVideoX's chunks and HunyuanVideo's windows are part of the model, so that only Wan's
whole videos equal their streams; of CogVideoX, the beginning of a video does.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import vae_cogvideox, vae_hunyuan_video
from sixbit_jax.vae import streaming, wan
from sixbit_jax.vae.cogvideox import AutoencoderKLCogVideoX
from sixbit_jax.vae.hunyuan_video import AutoencoderKLHunyuanVideo
from tests.golden import vae_cases, vae_wan_cases
from tests.sixbit_jax.vae.small import golden_vae, relative_l2
from tests.sixbit_jax.vae.wan_models import model_of

with np.load(Path(vae_cases.ROOT) / "clips.npz") as file:
    CLIPS = {name: file[name] for name in file.files}
LONG = [name for name, frames in CLIPS.items() if len(frames) == 17]


@dataclass(frozen=True)
class Kind:
    """A small autoencoder.

    Attributes:
      make: it.
      module: of `decode_stream` and `encode`.
      channels, temporal, spatial: of its latents.
      parts: frames of the parts in which 17 are decoded.
    """

    make: Callable[[], Any]
    module: Any
    channels: int
    temporal: int
    spatial: int
    parts: tuple[int, ...]

    @property
    def stream(self) -> dict[str, int]:
        """Options that make steps as short as they can be."""
        return {"chunk": 1} if self.module is wan else {}

    def encode(self, video, **options):
        return self.module.encode(self.make(), video, **(self.stream | options))

    def decode(self, latents, **options):
        options = {"dtype": jnp.float32} | self.stream | options
        return self.module.decode_stream(self.make(), latents, **options)


@functools.cache
def cogvideox():
    case = vae_cases.load("vae_cogvideox", "three_levels_f5_3x4_f17_14x11")
    return golden_vae(case, AutoencoderKLCogVideoX, vae_cogvideox.TABLE)


@functools.cache
def wan_21():
    return model_of(vae_wan_cases.load("21_f13_16x24_encode"))


@functools.cache
def wan_22():
    return model_of(vae_wan_cases.load("22_f9_32x48_encode"))


@functools.cache
def hunyuan_video():
    case = vae_cases.load("vae_hunyuan_video", "three_levels_f5_2x2_f17_8x10")
    return golden_vae(case, AutoencoderKLHunyuanVideo, vae_hunyuan_video.TABLE)


KINDS = {
    "cogvideox": Kind(cogvideox, streaming, 4, 4, 4, (9, 8)),
    "wan 2.1": Kind(wan_21, wan, 4, 4, 8, (1, 4, 4, 4, 4)),
    "wan 2.2": Kind(wan_22, wan, 4, 4, 16, (1, 4, 4, 4, 4)),
    "hunyuan-video": Kind(hunyuan_video, streaming, 2, 4, 4, (13, 4)),
}
WAN = [name for name in KINDS if name.startswith("wan")]


def pixels(clip: str, frames: int | None = None) -> np.ndarray:
    video = CLIPS[clip][:frames].astype(np.float32) / 127.5 - 1
    return video.transpose(0, 3, 1, 2)[None]


@functools.cache
def coded(kind: str, clip: str) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The mean of a clip's latents, and the parts that they are decoded into."""
    moments = KINDS[kind].encode(pixels(clip))
    mean, logvar = (np.asarray(part) for part in moments)
    assert mean.shape == logvar.shape
    assert np.isfinite(mean).all()
    return mean, tuple(map(np.asarray, KINDS[kind].decode(mean)))


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_has_its_size_there_and_back(kind, clip):
    mean, parts = coded(kind, clip)
    one, video = KINDS[kind], pixels(clip)
    frames = (video.shape[1] - 1) // one.temporal + 1
    size = (32 // one.spatial, 48 // one.spatial)
    assert mean.shape == (1, frames, one.channels, *size)
    # CogVideoX decodes two latents to eight frames, whatever they were made of.
    count = 8 if kind == "cogvideox" and frames == 2 else video.shape[1]
    assert np.concatenate(parts, 1).shape == (1, count, 3, 32, 48)
    # What moves in the clip moves in the latents.
    moved = np.sqrt(np.square(np.diff(mean, axis=1)).sum((0, 2, 3, 4)))
    assert (moved > 1e-3 * np.linalg.norm(mean)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_a_clip_come_in_parts(kind):
    for clip in LONG:
        _, parts = coded(kind, clip)
        assert tuple(part.shape[1] for part in parts) == KINDS[kind].parts


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kind", WAN)
def test_a_stream_of_wan_equals_the_whole_clip(kind, clip):
    mean, parts = coded(kind, clip)
    whole, _ = KINDS[kind].encode(pixels(clip), chunk=5)
    assert relative_l2(whole, mean) < 5e-6
    (back,) = KINDS[kind].decode(mean, chunk=5)
    assert relative_l2(back, np.concatenate(parts, 1)) < 5e-6


@pytest.mark.parametrize("clip", LONG)
def test_groups_of_frames_do_not_change_a_clip_of_cogvideox(clip):
    mean, parts = coded("cogvideox", clip)
    alone = KINDS["cogvideox"].decode(mean, group_bytes=1)
    found = np.concatenate([*map(np.asarray, alone)], 1)
    assert relative_l2(found, np.concatenate(parts, 1)) < 5e-6


@pytest.mark.parametrize("kind", ["cogvideox", *WAN])
@pytest.mark.parametrize("clip", LONG)
def test_the_beginning_of_a_clip_does_not_see_its_end(kind, clip):
    mean, parts = coded(kind, clip)
    early, _ = KINDS[kind].encode(pixels(clip, 9))
    assert relative_l2(early, mean[:, :3]) < 5e-6
    begins = np.concatenate([*map(np.asarray, KINDS[kind].decode(mean[:, :3]))], 1)
    assert relative_l2(begins, np.concatenate(parts, 1)[:, :9]) < 5e-6


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_flat_with_the_length_of_a_clip(kind):
    mean, _ = coded(kind, LONG[0])
    latents = np.concatenate([mean, mean[:, 1:], mean[:, 1:], mean[:, 1:]], 1)
    stream = KINDS[kind].decode(jnp.asarray(latents), output="uint8")
    held = []
    for _ in stream:
        held.append(sum(array.nbytes for array in jax.live_arrays()))
    assert len(held) > 4
    # The first part is shorter or longer than the others, and so may the last be.
    assert len(set(held[2:-1])) == 1
