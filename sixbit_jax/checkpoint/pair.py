"""Two converted networks of one pipeline (Wan2.2-A14B) in one directory."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sixbit_jax.checkpoint.directory import CheckpointError
from sixbit_jax.checkpoint.header import PAIR_NAME, Header, seal
from sixbit_jax.checkpoint.model import load
from sixbit_jax.config_schema import Schema, choice, number, sequence
from sixbit_jax.reading.json_file import read_json_object
from sixbit_jax.reading.messages import brief
from sixbit_jax.reading.regular_file import is_there
from sixbit_jax.sampling.pair import LowNoise

NETWORKS = ("high_noise", "low_noise")
_LARGEST = 1 << 20
# At timesteps from this share of them on, the network for high noise runs.
BOUNDARY = number(0, 1)
_SCHEMA = Schema(
    "pair",
    {
        "boundary": BOUNDARY,
        "networks": sequence(choice(*NETWORKS), length=len(NETWORKS)),
    },
    required=("boundary", "networks"),
)


@dataclass(frozen=True)
class _Description:
    """The contents of `pair.json`."""

    boundary: float
    networks: tuple[str, ...]

    def __post_init__(self) -> None:
        _SCHEMA.check(self)


def write_description(directory: Path, boundary: float) -> None:
    """Writes what is said of the pair beside its two networks."""
    values = {"boundary": boundary, "networks": list(NETWORKS)}
    text = json.dumps({**values, "checksum": seal(values)}, indent=1)
    (directory / PAIR_NAME).write_text(text + "\n", encoding="utf-8")


def read_boundary(path: str | os.PathLike) -> float:
    """The boundary of a pair: the share of the noise from which one network takes over.

    Raises:
      CheckpointError: if it is not a pair, or its description is damaged.
    """
    file = Path(path) / PAIR_NAME
    if not is_there(file):
        raise CheckpointError(f"{path}: expected {PAIR_NAME} of a pair, found none")
    try:
        values = read_json_object(file, largest=_LARGEST)
    except (ValueError, OSError) as error:
        raise CheckpointError(str(error)) from error
    described = {key: value for key, value in values.items() if key != "checksum"}
    try:
        boundary = _SCHEMA.read(described, _Description).boundary
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    # Earlier versions wrote none.
    if "checksum" in values and values["checksum"] != seal(values):
        raise CheckpointError(
            f"{file}: expected contents with the checksum "
            f"{brief(values['checksum'])}, found {seal(values)}: damaged or changed by "
            "hand"
        )
    return float(boundary)


def load_pair(
    path: str | os.PathLike,
    *,
    guidance_scale: float | None = None,
    dtype: Any = None,
    verify: bool = True,
) -> tuple[Any, LowNoise, Header]:
    """Loads what `convert` made of a root with two networks.

    Args:
      path: the directory.
      guidance_scale: of the network for low noise; None is that of the other.
      dtype, verify: as in `load`.

    Returns:
      The network for high noise, the other one with its boundary (`low_noise` of
      `sample`), and the header of the first.

    Raises:
      CheckpointError: if it is not a pair, or one of the two is not complete.
    """
    boundary = read_boundary(path)
    loaded: list[tuple[Any, Header]] = [
        load(Path(path) / name, dtype=dtype, verify=verify) for name in NETWORKS
    ]
    (high, header), (low, _) = loaded
    for network in (high, low):
        # So that the sampler can refuse one without the other.
        network.pair_boundary = boundary
    return high, LowNoise(low, boundary, guidance_scale), header


__all__ = ["NETWORKS", "load_pair", "read_boundary", "write_description"]
