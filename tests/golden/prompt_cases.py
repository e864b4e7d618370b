"""Prompts and the embeddings that the published pipelines make of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.text_cases import make_weights

FOLDER = Path(__file__).parent / "prompt_embeds"
# A short one, an empty one, one that is cut, one with much to clean.
PROMPTS = (
    "A red kite over a green hill.",
    "",
    "The camera pans left across a foggy pine forest, cinematic, highly detailed. " * 3,
    "  schÃ¶n &amp;amp; frei\n\n☃ “don’t”\t1,234 ",
)
# Folders of `make_tokenizers.py`, and rows of the embeddings (the published ones are
# 226, 512, 256 and 77).
TOKENIZERS = {
    "cogvideox": "t5_old",
    "wan": "umt5",
    "hunyuan_llama": "llama",
    "hunyuan_clip": "clip",
}
ROWS = {"cogvideox": 40, "wan": 48, "hunyuan_llama": 250, "hunyuan_clip": 77}
# Of the longest one only every seventh row is stored.
STRIDES = {"hunyuan_llama": 7}


@dataclass(frozen=True)
class PromptCase:
    """An encoder, and what its pipeline makes of `PROMPTS`.

    Attributes:
      config: config.json of the encoder.
      shapes: state dict key -> shape.
      gains: part of a key -> factor of its weights.
      output: float32 [prompts, rows, D] (every `STRIDES`-th row), or [prompts, D].
      mask: true for rows of the prompt, where the pipeline returns a mask.
    """

    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    gains: dict[str, float]
    output: np.ndarray
    mask: np.ndarray | None

    def weights(self) -> dict[str, np.ndarray]:
        """The state dict, float32, under transformers' keys."""
        return make_weights(self.shapes, self.gains)


def load(name: str) -> PromptCase:
    """Reads one case, a key of `TOKENIZERS`."""
    with np.load(FOLDER / f"{name}.npz") as file:
        meta = json.loads(str(file["meta"]))
        output, mask = file["output"], file.get("mask")
    meta["shapes"] = {key: tuple(shape) for key, shape in meta["shapes"].items()}
    return PromptCase(output=output, mask=mask, **meta)
