"""Reading the golden outputs of the Wan transformer. Needs NumPy only."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.weights import random_array, random_weights

FOLDER = Path(__file__).parent / "wan"


@dataclass(frozen=True)
class WanInputs:
    """What the transformer is called with.

    Attributes:
      latents: float32 [batch, frames, channels, height, width] (diffusers takes
        channels before frames).
      text: float32 [batch, tokens, text_dim].
      timestep: float32 [batch], or [batch, video tokens] for TI2V.
      image: float32 [batch, image tokens, image_dim] or None.
    """

    latents: np.ndarray
    text: np.ndarray
    timestep: np.ndarray
    image: np.ndarray | None


@dataclass(frozen=True)
class WanCase:
    """One call of the diffusers transformer and its output.

    Attributes:
      name: file name without suffix.
      config: config.json of the transformer.
      shapes: state dict key -> shape.
      latent_shape: [batch, frames, channels, height, width] of the input.
      text_tokens: number of text tokens.
      image_tokens: number of image tokens, 0 for none.
      token_timesteps: whether each token has a timestep of its own, 0 in the tokens
        of the first frame.
      output: float32 [batch, frames, out_channels, height, width].
    """

    name: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    latent_shape: tuple[int, ...]
    text_tokens: int
    image_tokens: int
    token_timesteps: bool
    output: np.ndarray

    def weights(self) -> dict[str, np.ndarray]:
        """The state dict, float32, under diffusers' keys."""
        return random_weights(self.shapes)

    def inputs(self) -> WanInputs:
        """The inputs of the call."""
        return make_inputs(
            self.config,
            self.latent_shape,
            self.text_tokens,
            self.image_tokens,
            self.token_timesteps,
        )


def make_inputs(
    config: dict[str, Any],
    latent_shape: tuple[int, ...],
    text_tokens: int,
    image_tokens: int,
    token_timesteps: bool,
) -> WanInputs:
    """Inputs of a call; the batch has a different timestep in every row."""
    batch, frames, _, height, width = latent_shape
    timestep = np.array([999.0, 481.0, 19.0][:batch], np.float32)
    if token_timesteps:
        p_t, p_h, p_w = config["patch_size"]
        per_frame = (height // p_h) * (width // p_w)
        timestep = np.repeat(timestep[:, None], frames // p_t * per_frame, 1)
        timestep[:, :per_frame] = 0.0
    image = None
    if image_tokens:
        image = random_array("image", (batch, image_tokens, config["image_dim"]))
    return WanInputs(
        latents=random_array("latents", latent_shape),
        text=random_array("text", (batch, text_tokens, config["text_dim"])),
        timestep=timestep,
        image=image,
    )


def names() -> list[str]:
    """Names of all stored cases, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*_t*.npz"))


def load(name: str) -> WanCase:
    """Read one stored case.

    Args:
      name: one of `names()`.
    """
    with np.load(FOLDER / f"{name}.npz") as file:
        meta = json.loads(str(file["meta"]))
        output = file["output"]
    return WanCase(
        name=name,
        config=meta.pop("config"),
        shapes={key: tuple(shape) for key, shape in meta.pop("shapes").items()},
        latent_shape=tuple(meta.pop("latent_shape")),
        output=output,
        **meta,
    )
