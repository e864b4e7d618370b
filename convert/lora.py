"""LoRA: what is asked for, and how it is added to the weights in float32.

A weight W [N, K] becomes W + strength * (alpha / r) * up [N, r] down [r, K]; `diff`,
`diff_b` and the bias of `up` are added to weights, norms and biases as they are.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convert.errors import ConversionError
from convert.nvfp4_dialects import PackedInfo
from convert.rules import collapse
from convert.safetensors_file import TensorInfo
from sixbit_jax import checksums
from sixbit_jax.reading.messages import several

NETWORKS = ("high", "low")
_LARGEST_STRENGTH = 1e3
# Rows of a product that are made at once: the update needs no second matrix.
_ROWS = 1024


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA as it is asked for.

    Attributes:
      file: a safetensors file, one of `torch.save`, or the directory of an adapter.
      strength: factor of the whole update.
      network: "high" or "low" of a pair; "" for all networks.
      half: the network of a pair that this is added to, where it is known: files with
        the updates of both (`transformer.`, `transformer_2.`) are read in part.
    """

    file: Path
    strength: float = 1.0
    network: str = ""
    half: str = ""

    def __post_init__(self) -> None:
        for name in ("network", "half"):
            found = getattr(self, name)
            if found not in ("", *NETWORKS):
                raise ValueError(f"{name}: expected one of {NETWORKS}, found {found!r}")
        fits = math.isfinite(self.strength) and abs(self.strength) <= _LARGEST_STRENGTH
        if not fits:
            raise ValueError(
                f"strength of {self.file}: expected a number within "
                f"{_LARGEST_STRENGTH:g}, found {self.strength!r}"
            )

    @classmethod
    def parse(cls, text: "str | os.PathLike | LoraChoice") -> "LoraChoice":
        """Reads FILE[:strength], with `high=` or `low=` in front for one of a pair.

        >>> choice = LoraChoice.parse("high=style.safetensors:0.8")
        >>> choice.file.name, choice.strength, choice.network
        ('style.safetensors', 0.8, 'high')

        Raises:
          ValueError: for a strength that is no number within 1000.
        """
        if isinstance(text, LoraChoice):
            return text
        rest, network = os.fspath(text), ""
        for name in NETWORKS:
            if rest.startswith(f"{name}=") and not Path(rest).exists():
                rest, network = rest.removeprefix(f"{name}="), name
        file, colon, number = rest.rpartition(":")
        if colon and file and not Path(rest).exists():
            try:
                return cls(Path(file), float(number), network)
            except ValueError as error:
                if Path(file).exists():
                    raise ValueError(
                        f"LoRA {file}: expected a strength (a number within "
                        f"{_LARGEST_STRENGTH:g}) after the colon, found {number!r}"
                    ) from error
        return cls(Path(rest), network=network)


class LowRank(NamedTuple):
    """scale * up down, added to a weight.

    Attributes:
      down: [r, K], or [r, C, ...] of a convolution.
      up: [N, r] with any axes of 1 behind.
      scale: strength * alpha / r.
    """

    down: TensorInfo
    up: TensorInfo
    scale: float

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]

    def matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """down [r, K] and scale * up [N, r], float32."""
        down = self.down.read().astype(np.float32).reshape(self.rank, -1)
        up = self.up.read().astype(np.float32).reshape(-1, self.rank)
        return down, up * np.float32(self.scale)

    def add_to(self, array: np.ndarray) -> None:
        """Adds the product to an array of the weight's shape, in place."""
        down, up = self.matrices()
        rows = array.reshape(len(array), -1)
        for begin in range(0, len(rows), _ROWS):
            rows[begin : begin + _ROWS] += up[begin : begin + _ROWS] @ down


class Difference(NamedTuple):
    """scale * tensor, added to a weight, a norm or a bias of the same shape."""

    tensor: TensorInfo
    scale: float

    def add_to(self, array: np.ndarray) -> None:
        """Adds the tensor to an array of its shape, in place."""
        change = self.tensor.read().astype(array.dtype).reshape(array.shape)
        array += change * array.dtype.type(self.scale)


Update = LowRank | Difference


@dataclass(frozen=True)
class Lora:
    """A LoRA that fits its network.

    Attributes:
      choice: what was asked for.
      file: the file of tensors.
      updates: of each parameter of the network, by diffusers' key.
      keys: how many tensors of the file were used.
    """

    choice: LoraChoice
    file: Path
    updates: Mapping[str, tuple[Update, ...]]
    keys: int

    def record(self) -> dict[str, Any]:
        """For headers: the file, its checksum, strength, keys and ranks."""
        updates = [one for group in self.updates.values() for one in group]
        ranks = sorted({one.rank for one in updates if isinstance(one, LowRank)})
        return {
            "file": self.file.name,
            "checksum": checksums.of_file(self.file),
            "strength": self.choice.strength,
            "keys_read": self.keys,
            "parameters_changed": len(self.updates),
            "ranks": ranks,
        }


@dataclass(frozen=True)
class FusedInfo(TensorInfo):
    """A tensor with updates: `read` gives their sum, float32 (float64 stays).

    `dtype` is that of the tensor alone.

    Attributes:
      base: the tensor.
      updates: what is added, in this order.
    """

    base: TensorInfo | None = None
    updates: tuple[Update, ...] = ()

    @property
    def dtype_name(self) -> str:
        """Of the tensor alone."""
        assert self.base is not None
        return self.base.dtype_name

    @property
    def is_float(self) -> bool:
        """Of the tensor alone."""
        assert self.base is not None
        return self.base.is_float

    def read(self) -> np.ndarray:
        """Reads the tensor and adds its updates."""
        assert self.base is not None
        array = self.base.read()
        wide = np.float64 if array.dtype == np.float64 else np.float32
        array = np.array(array, wide)
        with np.errstate(over="ignore", invalid="ignore"):
            for update in self.updates:
                update.add_to(array)
        return array


def fuse(
    tensors: Mapping[str, TensorInfo], loras: Sequence[Lora]
) -> dict[str, TensorInfo]:
    """The tensors of a network with those of LoRA files added when they are read.

    Raises:
      ConversionError: lists weights that are packed in 4 bits already.
    """
    updates: dict[str, tuple[Update, ...]] = {}
    for lora in loras:
        for key, more in lora.updates.items():
            updates[key] = updates.get(key, ()) + more
    packed = [key for key in updates if isinstance(tensors[key], PackedInfo)]
    if packed:
        raise ConversionError(
            "\n  ".join(
                [
                    "LoRA: expected weights that are not packed yet, found "
                    "NVFP4 codes; convert without --lora and add it to the loaded "
                    "network (sixbit_jax.fuse_lora), or take the unquantized weights:",
                    *several(collapse(packed)),
                ]
            )
        )
    fused = {
        key: FusedInfo(
            dtype=tensors[key].dtype,
            shape=tensors[key].shape,
            file=tensors[key].file,
            offset=tensors[key].offset,
            base=tensors[key],
            updates=more,
        )
        for key, more in updates.items()
    }
    return {**tensors, **fused}


__all__ = [
    "NETWORKS",
    "Difference",
    "FusedInfo",
    "Lora",
    "LoraChoice",
    "LowRank",
    "fuse",
]
