"""A whole root -> a pipeline directory, one component after the other."""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convert.conversion import convert
from convert.errors import ConversionError
from convert.lora import LoraChoice
from convert.original_root import is_original_root, plan_original_root
from convert.pair import by_network
from convert.report import ConversionReport
from convert.root_plan import RootPlan, is_diffusers_root, plan_diffusers_root
from sixbit_jax import components
from sixbit_jax.checkpoint.directory import new_directory
from sixbit_jax.pipelines.header import PIPELINE_NAME

_COPIED_SUFFIXES = (".json", ".txt", ".model")
_MOST_COPIED = 64 * 2**20
_NEVER_QUANTIZED = ("vae",)
ENCODER_WEIGHTS = "uniform8"
"""How text and image encoders are stored when the transformer is quantized."""


@dataclass(frozen=True)
class RootReport:
    """What the conversion of a root did.

    Attributes:
      destination: the directory that was made.
      pipeline_class: class name of the pipeline.
      components: a report per component, by folder.
      copied: folders of tokenizers and processors.
      missing: components that were left out, and why.
      seconds: wall time.
    """

    destination: Path
    pipeline_class: str
    components: Mapping[str, ConversionReport]
    copied: tuple[str, ...]
    missing: Mapping[str, str]
    seconds: float

    @property
    def written_bytes(self) -> int:
        """Bytes of all components."""
        return sum(report.written_bytes for report in self.components.values())

    @property
    def source_bytes(self) -> int:
        """Bytes of the source's files of weights."""
        return sum(report.source_bytes for report in self.components.values())

    def __str__(self) -> str:
        lines = []
        for folder, report in self.components.items():
            first, *rest = str(report).splitlines()
            lines += [f"{folder}: {first}", *(f"  {line}" for line in rest)]
        if self.copied:
            lines.append(f"copied: {', '.join(self.copied)}")
        lines += [f"left out: {name} ({why})" for name, why in self.missing.items()]
        lines.append(
            f"{self.pipeline_class}: {self.source_bytes:,} bytes read, "
            f"{self.written_bytes:,} written in {self.seconds:.1f} s: "
            f"{self.destination}"
        )
        return "\n".join(lines)


def is_root(path: str | os.PathLike) -> bool:
    """Whether a path is a root, of diffusers or of Wan's authors, with all components.

    A directory with transformers alone is none.
    """
    path = Path(path)
    return is_diffusers_root(path) or is_original_root(path)


def convert_root(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    weights: Any = "keep",
    encoder_weights: Any = None,
    only: Sequence[str] = (),
    lora: Sequence[str | os.PathLike | LoraChoice] = (),
    **options: Any,
) -> RootReport:
    """Converts every component of a root, one after the other.

    Args:
      source: the directory with `model_index.json`, or a root of Wan's authors.
      destination: the directory to make; it appears when it is complete.
      weights: of the transformers; see `convert`.
      encoder_weights: of the text and image encoders; None is "keep" where `weights`
        is, and 8 bits per output channel otherwise (their embeddings suffer more from
        4 bits than the transformer does). The VAE is never quantized.
      only: folders to convert; empty for all. The others can be added by hand.
      lora: as of `convert`, for all transformers; high=FILE or low=FILE for one of two.
      options: `dtype`, `rotation`, `refine`, `dialect` of `convert`, for transformers
        (`dtype` for all).

    Raises:
      ConversionError: if the root or one of its components is not complete and
        supported. Nothing is left behind.
    """
    began = time.perf_counter()
    plan = plan_root(Path(source), only)
    header = plan.header
    loras = _loras(header.components, lora)
    if encoder_weights is None:
        encoder_weights = weights if weights == "keep" else ENCODER_WEIGHTS
    reports: dict[str, ConversionReport] = {}
    with new_directory(destination) as directory:
        for folder, class_name in header.components.items():
            kind = components.kind_of(class_name)
            chosen: dict[str, Any] = {"dtype": options.get("dtype", "keep")}
            if kind == "transformer":
                chosen = options | {"weights": weights, "lora": loras[folder]}
            elif kind not in _NEVER_QUANTIZED:
                chosen["weights"] = encoder_weights
            try:
                report = convert(plan.sources[folder], directory / folder, **chosen)
            except ConversionError as error:
                raise ConversionError(f"{folder}: {error}") from error
            reports[folder] = replace(report, destination=Path(destination) / folder)
        for name, folder in plan.folders.items():
            _copy(folder, directory / name)
        for name, text in plan.texts.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(text, encoding="utf-8")
        (directory / PIPELINE_NAME).write_text(header.to_json(), encoding="utf-8")
    return RootReport(
        destination=Path(destination),
        pipeline_class=header.pipeline_class,
        components=reports,
        copied=tuple(header.tokenizers),
        missing=header.missing,
        seconds=time.perf_counter() - began,
    )


def _loras(
    todo: Mapping[str, str], lora: Sequence[str | os.PathLike | LoraChoice]
) -> dict[str, Sequence[LoraChoice]]:
    """The LoRA files of every transformer."""
    folders = [
        folder
        for folder, name in todo.items()
        if components.kind_of(name) == "transformer"
    ]
    if len(folders) == 2:
        return dict(zip(sorted(folders), by_network(lora), strict=True))
    return {folder: [LoraChoice.parse(one) for one in lora] for folder in folders}


def plan_root(source: Path, only: Sequence[str] = ()) -> RootPlan:
    """What to convert and to copy.

    Args:
      source: the root.
      only: folders to convert; empty for all.

    Raises:
      ConversionError: for an unsupported pipeline, and all components that are missing
        or unsupported.
    """
    diffusers = is_diffusers_root(source) or not is_original_root(source)
    return (plan_diffusers_root if diffusers else plan_original_root)(source, only)


def _copy(source: Path, destination: Path) -> None:
    destination.mkdir()
    for file in sorted(source.iterdir()):
        if not file.is_file() or file.suffix not in _COPIED_SUFFIXES:
            continue
        if file.stat().st_size > _MOST_COPIED:
            raise ConversionError(
                f"{file}: expected at most {_MOST_COPIED:,} bytes, found "
                f"{file.stat().st_size:,}"
            )
        shutil.copyfile(file, destination / file.name)


__all__ = ["RootReport", "convert_root", "is_root", "plan_root"]
