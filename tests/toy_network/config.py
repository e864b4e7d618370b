"""Configuration of the toy network."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class ToyConfig:
    """Attributes: width, and blocks of each of the two stacks."""

    dim: int = 128
    channels: int = 4
    text_dim: int = 16
    mixing_layers: int = 2
    closing_layers: int = 1

    def token_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """One token for every latent pixel."""
        return frames, height, width

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ToyConfig":
        """Reads a `config.json`; raises ValueError for unknown keys."""
        known = {field.name for field in fields(cls)}
        given = {key: value for key, value in values.items() if key[0] != "_"}
        if unknown := sorted(given.keys() - known):
            raise ValueError(f"Toy config: not keys of it: {unknown}")
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """The mapping of a `config.json`."""
        return asdict(self)
