"""Finds a diffusers checkpoint on disk and reads it tensor by tensor, without torch."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert import gguf_file, safetensors_file, torch_file
from convert.all_in_one import network_alone
from convert.errors import ConversionError
from convert.kinds import component_of, refuse_others, refuse_stand_in
from convert.layouts import by_diffusers
from convert.listed import check_listed
from convert.nvfp4_source import PackedSource, open_packed
from convert.prefixes import strip_prefixes
from convert.safetensors_file import TensorInfo
from convert.scaled_fp8 import read_scaled
from convert.state_dicts import Chosen
from sixbit_jax.reading.json_file import LARGEST_BYTES, read_json_object
from sixbit_jax.reading.messages import brief, named, several
from sixbit_jax.reading.regular_file import check_regular, is_there

# Where pipelines with two networks (Wan2.2-A14B) have the one for low noise.
SECOND = "transformer_2"
# Folders of the two networks: in diffusers' roots, and in those of Wan's authors.
PAIRS = (("transformer", SECOND), ("high_noise_model", "low_noise_model"))
# Those of diffusers have 1 KiB, with a description of quantized layers some 100.
_LARGEST_CONFIG = 4 * 2**20
_SAFETENSORS = ".safetensors"
# diffusers prefers safetensors where both are there.
_SUFFIXES = (_SAFETENSORS, *torch_file.SUFFIXES, gguf_file.SUFFIX)


@dataclass(frozen=True)
class Source:
    """A diffusers checkpoint, found and indexed; no tensor is read yet.

    Attributes:
      directory: the directory with `config.json`.
      config: its contents, or what the shapes say in Wan's original layout.
      scheduler: contents of `scheduler/scheduler_config.json`, if there is one.
      files: the files of weights.
      tensors: where each tensor lies.
      packed: how packed NVFP4 weights were read, and which tensors were left aside;
        nothing is packed if it names no dialect.
      loras: what is added to the tensors when they are read, a record per file.
      left: what else the files hold: "others", numbers of tensors by component, and
        "state_dicts", what was taken and left of each file of several.
    """

    directory: Path
    config: Mapping[str, Any]
    scheduler: Mapping[str, Any] | None
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]
    packed: PackedSource
    loras: tuple[Mapping[str, Any], ...] = ()
    left: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the files."""
        return sum(file.stat().st_size for file in self.files)


def open_source(
    path: str | os.PathLike,
    *,
    dialect: str = "auto",
    reference: str | os.PathLike | None = None,
    state_dict: str | None = None,
) -> Source:
    """Finds the network's checkpoint at `path`.

    Args:
      path: a diffusers root (its `transformer/` is taken), the directory of the
        network itself, or one file of weights with `config.json` next to it:
        `.safetensors`, what `torch.save` writes (`.bin`, `.pt`, `.pth`, `.ckpt`), or
        `.gguf`. Wan, its autoencoder and its encoders may have the key names of their
        authors' repository, and need no config.json.
      dialect: of packed NVFP4 weights (`nvfp4_dialects.CHOICES`); "auto" is what the
        files say.
      reference: the same network unquantized, to check packed weights against.
      state_dict: of a file of `torch.save` with several, the one to take.

    Returns:
      The indexed checkpoint.

    Raises:
      ConversionError: if there is none, it is in another original (non-diffusers)
        layout, an index or a header is damaged (lists all problems of the files), or
        packed weights do not fit their dialect.
    """
    directory, files = _find(Path(path))
    _check_weights(files)
    check_listed(directory)
    found, chosen = _index_all(directory, files, state_dict)
    alone, others = network_alone(found)
    stored = directory / "config.json"
    config = read_config(stored) if is_there(stored) else None
    tensors, left = _readable(strip_prefixes(alone), config)
    tensors, config = by_diffusers(tensors, config, directory)
    if config is None:
        raise ConversionError(
            f"{directory}: expected config.json next to the weights, found none"
            + (f" (and {component})" if (component := component_of(tensors)) else "")
            + f", and keys of no layout that is known, such as {named(min(tensors))}"
        )
    packed = open_packed(
        tensors,
        config,
        dialect=dialect,
        reference=None if reference is None else open_source(reference).tensors,
        notes=_notes(files),
    )
    return Source(
        directory=directory,
        config=config,
        scheduler=_scheduler(directory),
        files=tuple(files),
        tensors=packed.tensors,
        packed=packed._replace(unused=tuple(sorted({*packed.unused, *left}))),
        left={**({"others": others} if others else {}), **chosen},
    )


def _find(path: Path) -> tuple[Path, dict[Path, set[str] | None]]:
    """The directory of a network and its files, each with the tensors of an index.

    Raises:
      ConversionError: if there are none, several networks, or a file of another kind.
    """
    if not path.exists():
        raise ConversionError(f"source: expected a checkpoint, found nothing at {path}")
    if not path.is_dir():
        _check_weights([path])
        if path.suffix not in _SUFFIXES:
            raise ConversionError(
                f"{path}: expected one of {', '.join(_SUFFIXES)}, found "
                f"{path.suffix or 'no suffix'}"
            )
        return path.parent, {path: None}
    for first, second in PAIRS:
        if (path / second).is_dir():
            raise ConversionError(
                f"{path}: expected one network, found {first}/ and {second}/; name "
                "one of them, or convert both (convert_pair)"
            )
    inside = path / "transformer"
    use_inside = inside.is_dir() and not is_there(path / "config.json")
    directory = inside if use_inside else path
    files: dict[Path, set[str] | None] = {}
    for suffix in _SUFFIXES:
        files = files or _indexed_files(directory, suffix)
    if not files:
        raise ConversionError(
            f"{directory}: expected a diffusers directory with config.json and "
            "*.safetensors, found neither safetensors nor an index, and no file of "
            "torch.save"
        )
    return directory, files


def _readable(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any] | None
) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
    """Tensors whose kind of quantization is read, and the names that were left out."""
    refuse_others(tensors, config or {})
    return read_scaled(tensors)


def _notes(files: Iterable[Path]) -> dict[str, str]:
    """What the writers say of the tensors in the headers of all files."""
    return {
        name: text
        for file in files
        if file.suffix == _SAFETENSORS
        for name, text in safetensors_file.read_metadata(file).items()
    }


def _check_weights(files: Iterable[Path]) -> None:
    """Refuses what is no regular file, before anything is opened."""
    problems = []
    for file in files:
        try:
            check_regular(file)
            refuse_stand_in(file)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise ConversionError("\n".join(several(problems)))


def read_config(file: Path, largest: int = _LARGEST_CONFIG) -> dict[str, Any]:
    """A configuration or an index.

    Raises:
      ConversionError: if it is no JSON object, no regular file, or too large.
    """
    try:
        return read_json_object(file, largest=largest)
    except (ValueError, OSError) as error:
        raise ConversionError(str(error)) from error


def _scheduler(directory: Path) -> dict[str, Any] | None:
    candidates = [directory]
    if is_there(directory.parent / "model_index.json"):
        candidates.append(directory.parent)
    for candidate in candidates:
        file = candidate / "scheduler" / "scheduler_config.json"
        if is_there(file):
            return read_config(file)
    return None


def _indexed_files(directory: Path, suffix: str) -> dict[Path, set[str] | None]:
    """The files to read, each with the tensors that an index says it holds."""
    index = f"{suffix}.index"
    indices = sorted(f for f in directory.glob("*.json") if index in f.name)
    files = sorted(directory.glob(f"*{suffix}"))
    singles = [f for f in files if "-of-" not in f.name]
    if not indices and not singles:
        if files:
            raise ConversionError(
                f"{directory}: expected *{index}.json for the shards "
                f"{', '.join(f.name for f in files)}, found none"
            )
        return {}
    candidates = indices or singles
    if len(candidates) > 1:
        # Variants such as fp16 lie next to the default one, which has this name.
        plain = [
            f for f in candidates if f.name.startswith("diffusion_pytorch_model.s")
        ]
        exact = [
            f for f in plain if "index." not in f.name or f.name.endswith("x.json")
        ]
        if len(exact) != 1:
            raise ConversionError(
                f"{directory}: expected one checkpoint, found "
                f"{', '.join(f.name for f in candidates)}; name one file"
            )
        candidates = exact
    chosen = candidates[0]
    if not indices:
        return {chosen: None}
    return _shards(chosen)


def _shards(index: Path) -> dict[Path, set[str] | None]:
    weight_map = read_config(index, LARGEST_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConversionError(
            f"{index}: expected a weight_map, found {brief(weight_map)}"
        )
    names: dict[str, set[str]] = {}
    problems = []
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _is_file_name(name, index):
            problems.append(
                f"{named(tensor)}: expected a file name, found {brief(name)}"
            )
        else:
            names.setdefault(name, set()).add(tensor)
    for name, wanted in names.items():
        if not is_there(index.parent / name):
            problems.append(f"{named(name)} ({len(wanted)} tensors): no such file")
    if problems:
        raise ConversionError("\n  ".join([f"{index}: bad index:", *several(problems)]))
    return {index.parent / name: names[name] for name in sorted(names)}


def _is_file_name(name: str, index: Path) -> bool:
    """Whether this can be a file of the same kind, beside the index."""
    suffix = next((s for s in _SUFFIXES if f"{s}.index" in index.name), "")
    plain = Path(name).name == name and name.isprintable() and len(name) < 256
    return plain and name.endswith(suffix)


def _read_chosen(file: Path, state_dict: str | None) -> Chosen:
    """The tensors of one file, by the reader of its kind."""
    if file.suffix in torch_file.SUFFIXES:
        return torch_file.read_chosen(file, state_dict)
    if state_dict is not None:
        raise ConversionError(
            f"{file}: --state-dict {named(state_dict)}: expected a file of torch.save"
        )
    reader = gguf_file if file.suffix == gguf_file.SUFFIX else safetensors_file
    return Chosen(reader.read_index(file))


def _index_all(
    directory: Path,
    files: Mapping[Path, set[str] | None],
    state_dict: str | None,
) -> tuple[dict[str, TensorInfo], dict[str, Any]]:
    """All tensors, and what was taken and left of files with several state dicts."""
    tensors: dict[str, TensorInfo] = {}
    records: dict[str, Any] = {}
    problems = []
    for file, wanted in files.items():
        try:
            chosen = _read_chosen(file, state_dict)
        except (ConversionError, OSError) as error:
            problems.append(str(error))
            continue
        found = chosen.tensors
        if record := chosen.record():
            records[file.name] = record
        if wanted is not None:
            missing, more = wanted - found.keys(), found.keys() - wanted
            differences = [
                f"{file.name}: the index places {named(name)} here; not found"
                for name in sorted(missing)
            ] + [
                f"{file.name}: holds {named(name)}, which the index does not"
                for name in sorted(more)
            ]
            problems += several(differences)
        tensors |= found
    if problems:
        raise ConversionError(
            "\n".join([f"{directory}: files that cannot be read:", *problems])
        )
    return tensors, ({"state_dicts": records} if records else {})
