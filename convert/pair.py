"""Checkpoints with two networks (Wan2.2-A14B): `transformer/` and `transformer_2/`."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from convert.conversion import convert
from convert.errors import ConversionError
from convert.export import to_diffusers
from convert.lora import NETWORKS as LORA_NETWORKS
from convert.lora import LoraChoice
from convert.reader import PAIRS, SECOND
from convert.report import ConversionReport
from sixbit_jax.checkpoint import new_directory, read_header
from sixbit_jax.checkpoint.header import PAIR_NAME
from sixbit_jax.checkpoint.pair import (
    BOUNDARY,
    NETWORKS,
    published_boundary,
    read_boundary,
    write_description,
)
from sixbit_jax.models import registry
from sixbit_jax.reading.json_file import read_json_object
from sixbit_jax.reading.messages import brief
from sixbit_jax.reading.regular_file import is_there

# Of text to video; pipelines write theirs into model_index.json.
_DEFAULT_BOUNDARY = 0.875
FOLDERS = ("transformer", SECOND)


def is_pair(source: str | os.PathLike) -> bool:
    """Whether a root, of diffusers or of Wan's authors, holds two networks."""
    return _folders(Path(source)) is not None


def _folders(source: Path) -> tuple[str, str] | None:
    """The folders of the network for high noise and of the one for low noise."""
    return next((pair for pair in PAIRS if (source / pair[1]).is_dir()), None)


def convert_pair(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    lora: Sequence[str | os.PathLike | LoraChoice] = (),
    **options: Any,
) -> tuple[ConversionReport, ConversionReport]:
    """Converts both networks of a diffusers root, one block in memory at a time.

    Args:
      source: diffusers root with `transformer/` (high noise) and `transformer_2/`, or
        one of Wan's authors with `high_noise_model/` and `low_noise_model/`.
      destination: directory to make: `high_noise/` and `low_noise/`, each as `convert`
        makes it, and `pair.json` with the boundary of model_index.json, or the
        published one.
      lora: as of `convert`, for both networks; high=FILE or low=FILE for one.
      options: of `convert`, for both.

    Returns:
      What was read and written, high noise first.

    Raises:
      ConversionError: if the root does not hold two networks, or model_index.json has
        no usable boundary.
      sixbit_jax.checkpoint.CheckpointError: if the destination exists. Nothing is left
        behind in either case.
    """
    source, destination = Path(source), Path(destination)
    folders = _folders(source)
    if folders is None:
        said = " or ".join(f"{first}/ and {second}/" for first, second in PAIRS)
        raise ConversionError(f"{source}: expected {said}")
    boundary = _boundary(source / "model_index.json")
    with new_directory(destination) as temporary:
        reports = [
            convert(source / folder, temporary / name, **options, lora=chosen)
            for folder, name, chosen in zip(
                folders, NETWORKS, by_network(lora), strict=True
            )
        ]
        if boundary is None:
            boundary = published_boundary(read_header(temporary / NETWORKS[0]))
        write_description(temporary, boundary)
    high, low = (
        replace(report, destination=destination / name)
        for report, name in zip(reports, NETWORKS, strict=True)
    )
    return high, low


def by_network(
    choices: Sequence[str | os.PathLike | LoraChoice],
) -> tuple[list[LoraChoice], list[LoraChoice]]:
    """What is added to the network for high noise, and to the one for low noise."""
    parsed = [LoraChoice.parse(choice) for choice in choices]
    high, low = (
        [
            replace(one, network="", half=name)
            for one in parsed
            if one.network in ("", name)
        ]
        for name in LORA_NETWORKS
    )
    return high, low


def pair_to_diffusers(
    source: str | os.PathLike, destination: str | os.PathLike, **options: Any
) -> Path:
    """Writes a converted pair back as a diffusers root.

    Args:
      source: directory that `convert_pair` made.
      destination: the root to make: `transformer/`, `transformer_2/`, `scheduler/`
        where the source has one, and model_index.json with the boundary. Text encoder
        and VAE are those of the original.
      options: of `to_diffusers`, for both.

    Returns:
      The destination.

    Raises:
      CheckpointError: if the source is no complete pair, or the destination exists;
        nothing is left behind.
    """
    boundary = read_boundary(source)
    destination = Path(destination)
    index: dict[str, Any] = {"_class_name": "WanPipeline", "boundary_ratio": boundary}
    with new_directory(destination) as temporary:
        for folder, name in zip(FOLDERS, NETWORKS, strict=True):
            made = to_diffusers(Path(source) / name, temporary / folder, **options)
            config = json.loads((made / "config.json").read_text())
            index[folder] = ["diffusers", config["_class_name"]]
            config_type, model = registry.get(config["_class_name"])
            described = model.describe(config_type.from_dict(config))
            if described.conditions.image_latent_channels:
                index["_class_name"] = "WanImageToVideoPipeline"
            scheduler = made / "scheduler"
            if scheduler.is_dir() and folder == FOLDERS[0]:
                scheduler.rename(temporary / "scheduler")
                file = temporary / "scheduler" / "scheduler_config.json"
                kind = json.loads(file.read_text()).get("_class_name")
                index["scheduler"] = ["diffusers", kind]
            elif scheduler.is_dir():
                shutil.rmtree(scheduler)
        text = json.dumps(index, indent=2) + "\n"
        (temporary / "model_index.json").write_text(text, encoding="utf-8")
    return destination


def export(
    source: str | os.PathLike, destination: str | os.PathLike, **options: Any
) -> Path:
    """Writes a converted directory back, with one network or a pair of them.

    Args:
      source, destination, options: as in `to_diffusers` and `pair_to_diffusers`.
    """
    pair = (Path(source) / PAIR_NAME).is_file()
    function = pair_to_diffusers if pair else to_diffusers
    return function(source, destination, **options)


def boundary_of(source: str | os.PathLike) -> float:
    """The boundary of a diffusers root, from its model_index.json.

    Raises:
      ConversionError: if the file is damaged, or its boundary is none.
    """
    found = _boundary(Path(source) / "model_index.json")
    return _DEFAULT_BOUNDARY if found is None else found


def _boundary(index: Path) -> float | None:
    """What model_index.json says; None: nothing."""
    if not is_there(index):
        return None
    try:
        found = read_json_object(index).get("boundary_ratio")
    except (ValueError, OSError) as error:
        raise ConversionError(str(error)) from error
    if found is None:
        return None
    try:
        return BOUNDARY.read(found)
    except (ValueError, TypeError) as error:
        raise ConversionError(
            f"{index}: boundary_ratio: expected {BOUNDARY.expected}, found "
            f"{brief(found)}"
        ) from error


__all__ = [
    "boundary_of",
    "by_network",
    "convert_pair",
    "export",
    "is_pair",
    "pair_to_diffusers",
]
