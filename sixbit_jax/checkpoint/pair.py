"""Two converted networks of one pipeline (Wan2.2-A14B) in one directory."""

import json
import os
from pathlib import Path
from typing import Any

from sixbit_jax.checkpoint.directory import CheckpointError
from sixbit_jax.checkpoint.header import PAIR_NAME, Header, seal
from sixbit_jax.checkpoint.model import load
from sixbit_jax.sampling.pair import LowNoise

NETWORKS = ("high_noise", "low_noise")
_LARGEST = 1 << 20


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
    if not file.is_file():
        raise CheckpointError(f"{path}: expected {PAIR_NAME} of a pair, found none")
    if (size := file.stat().st_size) > _LARGEST:
        raise CheckpointError(
            f"{file}: expected at most {_LARGEST:,} bytes, found {size:,}"
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        boundary = values["boundary"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file}: expected a boundary: {error!r}") from error
    if unknown := sorted(values.keys() - {"boundary", "networks", "checksum"}):
        raise CheckpointError(
            f"{file}: expected boundary, networks and checksum, found "
            f"{', '.join(unknown)} besides"
        )
    # Earlier versions wrote none.
    if "checksum" in values and values["checksum"] != seal(values):
        raise CheckpointError(
            f"{file}: expected contents with the checksum {values['checksum']}, found "
            f"{seal(values)}: damaged or changed by hand"
        )
    if type(boundary) not in (int, float) or not 0 <= boundary <= 1:
        raise CheckpointError(
            f"{file}: boundary: expected a number from 0 to 1, found {boundary!r}"
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
    (high, header), (low, _) = (
        load(Path(path) / name, dtype=dtype, verify=verify) for name in NETWORKS
    )
    return high, LowNoise(low, boundary, guidance_scale), header


__all__ = ["NETWORKS", "load_pair", "read_boundary", "write_description"]
