"""Reading the golden outputs of the prompt and picture encoders. Needs NumPy only."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.weights import random_array, random_weights

FOLDER = Path(__file__).parent / "text_encoders"


@dataclass(frozen=True)
class EncoderCase:
    """One call of a transformers encoder and its output.

    Attributes:
      name: file name without suffix.
      config: config.json of the encoder.
      shapes: state dict key -> shape.
      gains: part of a key -> factor of its weights.
      batch: rows.
      length: tokens of a row; 0 for pictures.
      lengths: tokens of each row before the padding, or None for no mask.
      eos: end-of-text token that is put before the padding, or None.
      output: float32 [batch, T, D], the hidden state that pipelines read.
      pooled: float32 [batch, D] or None.
      largest: largest magnitude in the residual stream.
    """

    name: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    gains: dict[str, float]
    batch: int
    length: int
    lengths: list[int] | None
    eos: int | None
    output: np.ndarray
    pooled: np.ndarray | None
    largest: float

    def weights(self) -> dict[str, np.ndarray]:
        """The state dict, float32, under transformers' keys."""
        return make_weights(self.shapes, self.gains)

    def ids(self) -> np.ndarray:
        """Token ids, int32 [batch, length]."""
        return make_ids(
            self.config["vocab_size"], self.batch, self.length, self.lengths, self.eos
        )

    def mask(self) -> np.ndarray | None:
        """True for tokens, [batch, length], or None."""
        return make_mask(self.length, self.lengths)

    def pixels(self) -> np.ndarray:
        """The pictures, float32 [batch, C, H, W]."""
        return make_pixels(self.config, self.batch)


def make_weights(
    shapes: Mapping[str, tuple[int, ...]], gains: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Weights of a state dict: norms around 1, and some parts scaled."""
    weights = random_weights(shapes)
    for key, shape in shapes.items():
        module = key.split(".")[-2] if "." in key else ""
        if key.endswith(".weight") and "norm" in module:
            weights[key] = (1 + 0.1 * random_array(key, shape)).astype(np.float32)
        for part, gain in gains.items():
            if part in key:
                weights[key] = (weights[key] * np.float32(gain)).astype(np.float32)
    return weights


def make_ids(
    vocab_size: int,
    batch: int,
    length: int,
    lengths: list[int] | None,
    eos: int | None,
) -> np.ndarray:
    """Random ids; with `eos`, it ends each row and is its padding."""
    noise = random_array("ids", (batch, length))
    # From 3 on, and below the end-of-text token.
    top = vocab_size - 1 if eos is None else min(vocab_size - 1, eos)
    unit = (noise / np.sqrt(3) + 1) / 2
    ids = (3 + np.floor(unit * (top - 3))).astype(np.int32)
    for row, end in enumerate(lengths or []):
        ids[row, end:] = 0 if eos is None else eos
        if eos is not None:
            ids[row, end - 1] = eos
    return ids


def make_mask(length: int, lengths: list[int] | None) -> np.ndarray | None:
    """True for tokens, [batch, length], or None."""
    if lengths is None:
        return None
    return np.arange(length)[None] < np.array(lengths)[:, None]


def make_pixels(config: Mapping[str, Any], batch: int) -> np.ndarray:
    """Random pictures, float32 [batch, C, H, W]."""
    size = config["image_size"]
    return random_array("pixels", (batch, config["num_channels"], size, size))


def names(prefix: str = "") -> list[str]:
    """Names of all stored cases that start like this, sorted."""
    return sorted(path.stem for path in FOLDER.glob(f"{prefix}*.npz"))


def load(name: str) -> EncoderCase:
    """Read one stored case.

    Args:
      name: one of `names()`.
    """
    with np.load(FOLDER / f"{name}.npz") as file:
        meta = json.loads(str(file["meta"]))
        output = file["output"]
        pooled = file.get("pooled")
    meta["shapes"] = {key: tuple(shape) for key, shape in meta["shapes"].items()}
    return EncoderCase(name=name, output=output, pooled=pooled, **meta)
