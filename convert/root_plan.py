"""What a whole root holds: which component lies where, and what a pipeline needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.errors import ConversionError
from convert.reader import read_config
from sixbit_jax import components
from sixbit_jax.pipelines.families import PIPELINES
from sixbit_jax.pipelines.header import PipelineHeader

INDEX = "model_index.json"
_COPIED = ("tokenizer", "image_processor", "feature_extractor")
NOT_ASKED_FOR = "not asked for"


@dataclass(frozen=True)
class RootPlan:
    """What to convert and to copy.

    Attributes:
      header: of the pipeline directory.
      sources: of every component with weights, by its folder in the pipeline: a
        directory or one file, for `convert`.
      folders: of tokenizers and processors, by their folder in the pipeline.
      texts: files to write that the root has none of, by their place in the pipeline.
    """

    header: PipelineHeader
    sources: Mapping[str, Path]
    folders: Mapping[str, Path]
    texts: Mapping[str, str] = field(default_factory=dict)


def is_diffusers_root(path: Path) -> bool:
    """Whether a path is a diffusers root with more in it than transformers."""
    return (path / INDEX).is_file() and any(
        (path / name).is_dir() for name in ("text_encoder", "vae")
    )


def plan_diffusers_root(source: Path, only: Sequence[str] = ()) -> RootPlan:
    """The plan of the directory of a diffusers pipeline.

    Args:
      source: the root, with `model_index.json`.
      only: folders to convert; empty for all.

    Raises:
      ConversionError: for an unsupported pipeline, and all components that are missing
        or unsupported.
    """
    index = read_config(source / INDEX)
    pipeline_class = index.get("_class_name")
    if pipeline_class not in PIPELINES:
        raise ConversionError(
            f"{source / INDEX} _class_name: expected one of "
            f"{', '.join(sorted(PIPELINES))}; found {pipeline_class!r}"
        )
    declared = [
        name
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and any(entry)
    ]
    check_only(only, declared)
    problems: list[str] = []
    found: dict[str, str] = {}
    copied: list[str] = []
    missing: dict[str, str] = {}
    for name in declared:
        folder = source / name
        if name == "scheduler":
            continue
        if not folder.is_dir():
            problems.append(f"{name}: expected a folder {name}/ in {source}")
        elif name.startswith(_COPIED):
            copied.append(name)
        elif only and name not in only:
            missing[name] = NOT_ASKED_FOR
        elif PIPELINES[pipeline_class].outside and name.startswith("text_encoder"):
            missing[name] = "prompts of this pipeline are embedded elsewhere"
        else:
            try:
                config = read_config(folder / "config.json")
                found[name] = components.class_name_of(config)
            except (ConversionError, ValueError, OSError) as error:
                problems.append(f"{name}: {error}")
    scheduler = None
    file = source / "scheduler" / "scheduler_config.json"
    if "scheduler" in declared:
        if file.is_file():
            scheduler = read_config(file)
        else:
            problems.append(f"scheduler: expected {file}")
    if problems:
        raise ConversionError("\n  ".join([f"{source}:", *problems]))
    header = PipelineHeader(
        pipeline_class=pipeline_class,
        components=found,
        tokenizers=tuple(copied),
        options=_options(index),
        scheduler=scheduler,
        missing=missing,
    )
    places = {name: source / name for name in (*found, *copied)}
    return RootPlan(
        header,
        {name: places[name] for name in found},
        {name: places[name] for name in copied},
    )


def check_only(only: Sequence[str], declared: Sequence[str]) -> None:
    """Refuses names that a root does not have.

    Raises:
      ConversionError: lists them.
    """
    if unknown := sorted(set(only) - set(declared)):
        raise ConversionError(
            f"only: expected some of {', '.join(declared)}; found {', '.join(unknown)}"
        )


def _options(index: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside the components in `model_index.json`."""
    return {
        name: value
        for name, value in index.items()
        if not name.startswith("_") and not isinstance(value, list)
    }


__all__ = [
    "INDEX",
    "NOT_ASKED_FOR",
    "RootPlan",
    "check_only",
    "is_diffusers_root",
    "plan_diffusers_root",
]
