"""`sixbit_pipeline.json`: which components a converted pipeline directory has."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sixbit_jax.checkpoint import CheckpointError

PIPELINE_NAME = "sixbit_pipeline.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class PipelineHeader:
    """The contents of `sixbit_pipeline.json`.

    Attributes:
      pipeline_class: class name in diffusers' `model_index.json`.
      options: numbers that stand beside the components there (`boundary_ratio`,
        `expand_timesteps`).
      components: folder -> class name of everything that has weights.
      tokenizers: folders of tokenizers and image processors, copied as they were.
      scheduler: contents of `scheduler_config.json`, or None.
      missing: components of the source that were not converted, and why.
    """

    pipeline_class: str
    components: Mapping[str, str]
    tokenizers: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(asdict(self), indent=1) + "\n"


def is_pipeline(path: Path) -> bool:
    """Whether a directory is a converted pipeline."""
    return (Path(path) / PIPELINE_NAME).is_file()


def read_pipeline_header(path: Path) -> PipelineHeader:
    """Reads `sixbit_pipeline.json` of a converted pipeline.

    Raises:
      CheckpointError: if the file is absent, damaged, or of another version.
    """
    file = Path(path) / PIPELINE_NAME
    if not file.is_file():
        raise CheckpointError(
            f"{path}: expected a pipeline directory with {PIPELINE_NAME} (made by "
            "`sixbit convert` from a diffusers root), found none"
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        version = values.pop("format_version")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: expected a JSON object with format_version, found {error!r}"
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: expected format_version {FORMAT_VERSION}, found {version!r}"
        )
    try:
        header = PipelineHeader(**values)
    except TypeError as error:
        raise CheckpointError(f"{file}: {error}") from error
    wrong = [
        name
        for name, wanted in (
            ("components", dict),
            ("options", dict),
            ("missing", dict),
            ("tokenizers", list),
            ("pipeline_class", str),
        )
        if not isinstance(getattr(header, name), wanted)
    ]
    if wrong:
        raise CheckpointError(f"{file}: fields of another type: {', '.join(wrong)}")
    unsafe = [
        name
        for name in (*header.components, *header.tokenizers)
        if not isinstance(name, str) or Path(name).name != name or name in ("", "..")
    ]
    if unsafe:
        raise CheckpointError(f"{file}: expected names of folders, found {unsafe}")
    return header
