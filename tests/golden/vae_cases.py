"""Reading the golden outputs of video autoencoders. Needs NumPy only."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.weights import random_array, random_weights

ROOT = Path(__file__).parent


@dataclass(frozen=True)
class VaeCase:
    """One decoded and one encoded video of a diffusers autoencoder.

    Attributes:
      name: file name without suffix.
      config: config.json of the autoencoder.
      shapes: state dict key -> shape.
      latent_shape: [batch, frames, channels, height, width] of what is decoded.
      video_shape: [batch, frames, 3, height, width] of what is encoded.
      tiled: whether tiling is on, with its default sizes.
      decoded: float32 [batch, frames, 3, height, width].
      mean, logvar: float32 [batch, frames, channels, height, width].
    """

    name: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    latent_shape: tuple[int, ...]
    video_shape: tuple[int, ...]
    tiled: bool
    decoded: np.ndarray
    mean: np.ndarray
    logvar: np.ndarray

    def weights(self) -> dict[str, np.ndarray]:
        """The state dict, float32, under diffusers' keys."""
        return random_weights(self.shapes)

    def latents(self) -> np.ndarray:
        """What is decoded, float32."""
        return random_array("latents", self.latent_shape)

    def video(self) -> np.ndarray:
        """What is encoded, float32 in [-1, 1]."""
        return random_array("video", self.video_shape) / np.float32(np.sqrt(3))


def names(folder: str) -> list[str]:
    """Names of all cases of a folder, sorted."""
    return sorted(path.stem for path in (ROOT / folder).glob("*.npz"))


def load(folder: str, name: str) -> VaeCase:
    """Reads one stored case.

    Args:
      folder: of the network.
      name: one of `names(folder)`.
    """
    with np.load(ROOT / folder / f"{name}.npz") as file:
        meta = json.loads(str(file["meta"]))
        arrays = {key: file[key] for key in ("decoded", "mean", "logvar")}
    return VaeCase(
        name=name,
        config=meta["config"],
        shapes={key: tuple(shape) for key, shape in meta["shapes"].items()},
        latent_shape=tuple(meta["latent_shape"]),
        video_shape=tuple(meta["video_shape"]),
        tiled=meta["tiled"],
        **arrays,
    )
