"""Two converted networks of one pipeline (Wan2.2-A14B) in one directory."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from sixbit_jax.checkpoint.directory import CheckpointError, new_directory
from sixbit_jax.checkpoint.header import PAIR_NAME, Header, seal
from sixbit_jax.checkpoint.items import verify
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


def published_boundary(header: Header) -> float:
    """The boundary of Wan2.2-A14B: 0.9 from an image, 0.875 from text."""
    # Latents, their mask and the image's latents.
    return 0.9 if header.config.get("in_channels") == 36 else 0.875


def join_pair(
    high: str | os.PathLike,
    low: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    boundary: float | None = None,
) -> None:
    """Copies two converted networks into the directory of a pair.

    Args:
      high, low: directories that `convert` made, for high and for low noise.
      destination: the directory to make.
      boundary: share of the noise from which the first one runs; None is the published
        one of Wan2.2-A14B.

    Raises:
      CheckpointError: if one is damaged, the two are not of one network stored in one
        way, or the destination exists. Nothing is left behind.
    """
    folders = [Path(high).absolute(), Path(low).absolute()]
    headers = [verify(folder)[0] for folder in folders]
    first, second = headers
    problems = [
        f"{name}: expected {brief(ours)} of {folders[0]}, found {brief(theirs)}"
        for name, ours, theirs in (
            ("network", first.model_class, second.model_class),
            ("config", dict(first.config), dict(second.config)),
            ("parameters", first.parameters, second.parameters),
            ("blocks", first.stacks, second.stacks),
        )
        if ours != theirs
    ]
    if problems:
        raise CheckpointError(
            "\n  ".join([f"{folders[1]}: not the other half of a pair:", *problems])
        )
    if boundary is None:
        boundary = published_boundary(first)
    described = _Description(boundary, NETWORKS)
    size = sum(sum(header.item_bytes.values()) for header in headers)
    try:
        with new_directory(destination, expected_bytes=size) as temporary:
            for folder, name in zip(folders, NETWORKS, strict=True):
                shutil.copytree(folder, temporary / name)
            write_description(temporary, described.boundary)
    except OSError as error:
        raise CheckpointError(f"{destination}: writing: {error}") from error


def load_pair(
    path: str | os.PathLike,
    *,
    guidance_scale: float | None = None,
    dtype: Any = None,
    verify: bool = True,
    mesh: Mesh | None = None,
) -> tuple[Any, LowNoise, Header]:
    """Loads what `convert` made of a root with two networks.

    Args:
      path: the directory.
      guidance_scale: of the network for low noise; None is that of the other.
      dtype, verify, mesh: as in `load`.

    Returns:
      The network for high noise, the other one with its boundary (`low_noise` of
      `sample`), and the header of the first.

    Raises:
      CheckpointError: if it is not a pair, or one of the two is not complete.
    """
    boundary = read_boundary(path)
    loaded: list[tuple[Any, Header]] = [
        load(Path(path) / name, dtype=dtype, verify=verify, mesh=mesh)
        for name in NETWORKS
    ]
    (high, header), (low, _) = loaded
    for network in (high, low):
        # So that the sampler can refuse one without the other.
        network.pair_boundary = boundary
    return high, LowNoise(low, boundary, guidance_scale), header


__all__ = [
    "NETWORKS",
    "join_pair",
    "load_pair",
    "published_boundary",
    "read_boundary",
    "write_description",
]
