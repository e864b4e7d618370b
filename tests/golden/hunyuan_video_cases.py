"""Reading the golden outputs of the HunyuanVideo transformer. Needs NumPy only."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.weights import random_array, random_weights

FOLDER = Path(__file__).parent / "hunyuan_video"


@dataclass(frozen=True)
class HunyuanVideoInputs:
    """What the transformer is called with.

    Attributes:
      latents: float32 [batch, frames, channels, height, width] (diffusers takes
        channels before frames).
      text: float32 [batch, tokens, text_embed_dim]; padding is random too.
      mask: bool [batch, tokens]: which are no padding.
      pooled: float32 [batch, pooled_projection_dim].
      timestep: float32 [batch].
      guidance: float32 [batch], not yet times 1000; None where none is read.
    """

    latents: np.ndarray
    text: np.ndarray
    mask: np.ndarray
    pooled: np.ndarray
    timestep: np.ndarray
    guidance: np.ndarray | None


@dataclass(frozen=True)
class HunyuanVideoCase:
    """One call of the diffusers transformer and its output.

    Attributes:
      name: file name without suffix.
      config: config.json of the transformer.
      shapes: state dict key -> shape.
      latent_shape: [batch, frames, channels, height, width] of the input.
      text_lengths: tokens of each prompt that are no padding.
      text_tokens: tokens with padding.
      output: float32 [batch, frames, out_channels, height, width].
    """

    name: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    latent_shape: tuple[int, ...]
    text_lengths: tuple[int, ...]
    text_tokens: int
    output: np.ndarray

    def weights(self) -> dict[str, np.ndarray]:
        """The state dict, float32, under diffusers' keys."""
        return random_weights(self.shapes)

    def inputs(self) -> HunyuanVideoInputs:
        """The inputs of the call."""
        return make_inputs(
            self.config, self.latent_shape, self.text_lengths, self.text_tokens
        )


def make_inputs(
    config: dict[str, Any],
    latent_shape: tuple[int, ...],
    text_lengths: tuple[int, ...],
    text_tokens: int,
) -> HunyuanVideoInputs:
    """Inputs of a call; every row of the batch has a timestep and a length."""
    batch = latent_shape[0]
    pooled = (batch, config["pooled_projection_dim"])
    return HunyuanVideoInputs(
        latents=random_array("latents", latent_shape),
        text=random_array("text", (batch, text_tokens, config["text_embed_dim"])),
        mask=np.arange(text_tokens) < np.array(text_lengths)[:, None],
        pooled=random_array("pooled", pooled),
        timestep=np.array([999.0, 481.5, 19.0][:batch], np.float32),
        guidance=np.array([6.0, 1.0, 3.5][:batch], np.float32)
        if config["guidance_embeds"]
        else None,
    )


def names() -> list[str]:
    """Names of all stored cases, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*_t*.npz"))


def load(name: str) -> HunyuanVideoCase:
    """Read one stored case.

    Args:
      name: one of `names()`.
    """
    with np.load(FOLDER / f"{name}.npz") as file:
        meta = json.loads(str(file["meta"]))
        output = file["output"]
    return HunyuanVideoCase(
        name=name,
        config=meta.pop("config"),
        shapes={key: tuple(shape) for key, shape in meta.pop("shapes").items()},
        latent_shape=tuple(meta.pop("latent_shape")),
        text_lengths=tuple(meta.pop("text_lengths")),
        output=output,
        **meta,
    )
