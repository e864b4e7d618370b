"""Two converted networks of one pipeline (Wan2.2-A14B) in one directory."""

import json
import os
from pathlib import Path
from typing import Any

from sixbit_jax.checkpoint.directory import CheckpointError
from sixbit_jax.checkpoint.header import Header
from sixbit_jax.checkpoint.model import load
from sixbit_jax.sampling.pair import LowNoise

NETWORKS = ("high_noise", "low_noise")
_NAME = "pair.json"


def write_description(directory: Path, boundary: float) -> None:
    """Writes what is said of the pair beside its two networks."""
    text = json.dumps({"boundary": boundary, "networks": list(NETWORKS)}, indent=1)
    (directory / _NAME).write_text(text + "\n")


def load_pair(
    path: str | os.PathLike,
    *,
    guidance_scale: float | None = None,
    dtype: Any = None,
) -> tuple[Any, LowNoise, Header]:
    """Loads what `convert` made of a root with two networks.

    Args:
      path: the directory.
      guidance_scale: of the network for low noise; None is that of the other.
      dtype: as in `load`.

    Returns:
      The network for high noise, the other one with its boundary (`low_noise` of
      `sample`), and the header of the first.

    Raises:
      CheckpointError: if it is not a pair, or one of the two is not complete.
    """
    file = Path(path) / _NAME
    if not file.is_file():
        raise CheckpointError(f"{path}: expected {_NAME} of a pair, found none")
    try:
        boundary = float(json.loads(file.read_text())["boundary"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: expected a boundary: {error!r}") from error
    loaded: list[tuple[Any, Header]] = [
        load(Path(path) / name, dtype=dtype) for name in NETWORKS
    ]
    (high, header), (low, _) = loaded
    for network in (high, low):
        # So that the sampler can refuse one without the other.
        network.pair_boundary = boundary
    return high, LowNoise(low, boundary, guidance_scale), header


__all__ = ["NETWORKS", "load_pair", "write_description"]
