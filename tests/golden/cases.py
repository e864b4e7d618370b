"""Reading the golden outputs of the CogVideoX transformer. Needs NumPy only."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.weights import random_array, random_weights

FOLDER = Path(__file__).parent / "cogvideox"


@dataclass(frozen=True)
class Inputs:
    """What the transformer is called with.

    Attributes:
      latents: float32 [batch, frames, channels, height, width]; with `patch_size_t`
        the frames are already padded to a multiple of it, as the pipeline does.
      text: float32 [batch, tokens, text_embed_dim].
      timestep: int64 [batch].
      ofs: float32 [1] or None.
    """

    latents: np.ndarray
    text: np.ndarray
    timestep: np.ndarray
    ofs: np.ndarray | None


@dataclass(frozen=True)
class GoldenCase:
    """One call of the diffusers transformer and its output.

    Attributes:
      name: file name without suffix.
      config: config.json of the transformer.
      shapes: state dict key -> shape.
      latent_shape: [batch, frames, channels, height, width] of the input.
      text_tokens: number of text tokens.
      output: float32 [batch, frames, out_channels, height, width].
    """

    name: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    latent_shape: tuple[int, ...]
    text_tokens: int
    output: np.ndarray

    def weights(self) -> dict[str, np.ndarray]:
        """The state dict, float32, under diffusers' keys."""
        return random_weights(self.shapes)

    def inputs(self) -> Inputs:
        """The inputs of the call."""
        return make_inputs(self.config, self.latent_shape, self.text_tokens)


def make_inputs(
    config: dict[str, Any], latent_shape: tuple[int, ...], text_tokens: int
) -> Inputs:
    """Inputs of a call; the batch has a different timestep in every row."""
    batch = latent_shape[0]
    text_shape = (batch, text_tokens, config["text_embed_dim"])
    return Inputs(
        latents=random_array("latents", latent_shape),
        text=random_array("text", text_shape),
        timestep=np.array([999, 481, 19][:batch], np.int64),
        ofs=np.array([2.0], np.float32) if config.get("ofs_embed_dim") else None,
    )


def names() -> list[str]:
    """Names of all stored cases, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.npz"))


def load(name: str) -> GoldenCase:
    """Read one stored case.

    Args:
      name: one of `names()`.
    """
    with np.load(FOLDER / f"{name}.npz") as file:
        meta = json.loads(str(file["meta"]))
        output = file["output"]
    return GoldenCase(
        name=name,
        config=meta["config"],
        shapes={key: tuple(shape) for key, shape in meta["shapes"].items()},
        latent_shape=tuple(meta["latent_shape"]),
        text_tokens=meta["text_tokens"],
        output=output,
    )
