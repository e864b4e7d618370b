"""Configuration of the toy network."""

from dataclasses import dataclass
from typing import ClassVar

from sixbit_jax.config_schema import FileConfig, Schema, integer


@dataclass(frozen=True)
class ToyConfig(FileConfig):
    """Attributes: width, and blocks of each of the two stacks."""

    schema: ClassVar[Schema] = Schema(
        "Toy config",
        {
            "dim": integer(1, 4096),
            "channels": integer(1, 64),
            "text_dim": integer(1, 4096),
            "mixing_layers": integer(1, 64),
            "closing_layers": integer(0, 64),
        },
    )

    dim: int = 128
    channels: int = 4
    text_dim: int = 16
    mixing_layers: int = 2
    closing_layers: int = 1

    def token_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """One token for every latent pixel."""
        return frames, height, width
