"""Reading the golden outputs of the Wan autoencoder. Needs NumPy only."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.weights import random_array, random_weights

FOLDER = Path(__file__).parent / "vae_wan"
# Larger outputs are stored in part: every n-th value, with the odd n below which fewer
# would be too many.
_MOST = 4000


@dataclass(frozen=True)
class VAECase:
    """One call of one half of the diffusers autoencoder.

    Attributes:
      name: file name without suffix.
      config: config.json of the autoencoder.
      shapes: state dict key -> shape.
      half: "decode" or "encode".
      input_shape: [batch, frames, channels, height, width] of the input.
      tiling: sizes given to `enable_tiling`, or None.
      output_shape: of the frames, or of mean and log variance side by side in the
        channels; frames before channels.
      values: float32, some of the output's values (`sample`).
    """

    name: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    half: str
    input_shape: tuple[int, ...]
    tiling: dict[str, int] | None
    output_shape: tuple[int, ...]
    values: np.ndarray

    def weights(self) -> dict[str, np.ndarray]:
        """The state dict, float32, under diffusers' keys."""
        return vae_weights(self.shapes)

    def inputs(self) -> np.ndarray:
        """The input of the call, float32."""
        return make_input(self.half, self.input_shape)


def vae_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights of a working network: scales of norms around 1."""
    weights = random_weights(shapes)
    for key in weights:
        if key.endswith(".gamma"):
            weights[key] = (1 + 0.2 * weights[key]).astype(np.float32)
    return weights


def make_input(half: str, shape: tuple[int, ...]) -> np.ndarray:
    """Latents of unit variance, or a video in [-1, 1]."""
    values = random_array(half, shape)
    return values if half == "decode" else values / np.float32(np.sqrt(3))


def sample(output: np.ndarray) -> np.ndarray:
    """The values that a file holds: all, or about 4000 spread over the output."""
    step = -(-output.size // _MOST)
    # Odd, so that it meets both of the two frames, rows and columns of an upsampling.
    step += 1 - step % 2
    return output.reshape(-1)[::step]


def names(half: str | None = None) -> list[str]:
    """Names of all stored cases, sorted; of one half if asked."""
    found = sorted(path.stem for path in FOLDER.glob("*.npz"))
    return [name for name in found if half is None or name.split("_")[-1] == half]


def load(name: str) -> VAECase:
    """Read one stored case.

    Args:
      name: one of `names()`.
    """
    with np.load(FOLDER / f"{name}.npz") as file:
        meta = json.loads(str(file["meta"]))
        values = file["values"]
    return VAECase(
        name=name,
        config=meta.pop("config"),
        shapes={key: tuple(shape) for key, shape in meta.pop("shapes").items()},
        input_shape=tuple(meta.pop("input_shape")),
        output_shape=tuple(meta.pop("output_shape")),
        values=values,
        **meta,
    )
