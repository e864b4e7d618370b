"""What PEFT and diffusers write about a LoRA beside its tensors: rank and alpha.

`adapter_config.json` next to `adapter_model.safetensors`, or the same fields as JSON in
the header of the safetensors file (`lora_adapter_metadata`, behind "transformer.").
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.errors import ConversionError
from convert.lora_names import without_prefix
from sixbit_jax.reading.json_file import parse_json_object, read_json_object
from sixbit_jax.reading.messages import brief
from sixbit_jax.reading.regular_file import is_there

_FILE = "adapter_config.json"
_BESIDE = "adapter_model"
_NOTE = "lora_adapter_metadata"
_LARGEST = 4 * 2**20


@dataclass(frozen=True)
class AdapterConfig:
    """How strong the modules of an adapter are.

    Attributes:
      alpha: of all modules that `alphas` does not name; None: the rank.
      alphas: of modules by name.
      rank_stabilized: divide by the root of the rank.
      dora: the adapter is no plain LoRA.
    """

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    rank_stabilized: bool = False
    dora: bool = False

    def scale(self, module: str, rank: int) -> float:
        """The factor of up x down for a module, by its name in the file."""
        alpha = self.alpha
        for name, value in self.alphas.items():
            if module == name or module.endswith(f".{name}"):
                alpha = value
                break
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def read_adapter_config(
    file: Path, notes: Mapping[str, str], *, folder: str = "transformer"
) -> AdapterConfig:
    """What is said of a file of tensors.

    Args:
      file: the file.
      notes: the metadata in its header.
      folder: of the network in diffusers' roots, before the fields in the header.

    Raises:
      ConversionError: lists fields that mean something that is not known.
    """
    beside = file.parent / _FILE
    try:
        if _NOTE in notes:
            where = f"{file}: {_NOTE}"
            fields = _of_network(
                parse_json_object(notes[_NOTE].encode(), where), f"{folder}."
            )
        elif file.stem == _BESIDE and is_there(beside):
            where = str(beside)
            fields = read_json_object(beside, largest=_LARGEST)
        else:
            return AdapterConfig()
    except (ValueError, OSError) as error:
        raise ConversionError(str(error)) from error
    return _parse(fields, where)


def _of_network(fields: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The fields of the network; those of others have another prefix."""
    found = {
        k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)
    }
    return found or dict(fields)


def _parse(fields: Mapping[str, Any], where: str) -> AdapterConfig:
    problems = []
    kind = fields.get("peft_type", "LORA")
    if kind != "LORA":
        problems.append(f"peft_type: expected 'LORA', found {brief(kind)}")
    alpha = fields.get("lora_alpha")
    if alpha is not None and not _is_number(alpha):
        problems.append(f"lora_alpha: expected a number, found {brief(alpha)}")
    patterns = fields.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        problems.append(
            f"alpha_pattern: expected numbers by module, found {brief(patterns)}"
        )
        patterns = {}
    alphas = {}
    for name, value in patterns.items():
        plain = name.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if not re.fullmatch(r"[\w.]+", plain) or not _is_number(value):
            problems.append(
                f"alpha_pattern: expected the name of a module and a number, found "
                f"{brief(name)}: {brief(value)}"
            )
            continue
        alphas[without_prefix(plain)] = float(value)
    flags = {}
    for name in ("use_rslora", "use_dora", "fan_in_fan_out"):
        flags[name] = fields.get(name) or False
        if not isinstance(flags[name], bool):
            problems.append(
                f"{name}: expected true or false, found {brief(flags[name])}"
            )
    if flags["fan_in_fan_out"] is True:
        problems.append("fan_in_fan_out: expected false, found True")
    if problems:
        raise ConversionError("\n  ".join([f"{where}:", *problems]))
    return AdapterConfig(
        alpha=None if alpha is None else float(alpha),
        alphas=alphas,
        rank_stabilized=flags["use_rslora"],
        dora=flags["use_dora"],
    )


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (math.isfinite(value) and abs(value) < 1e9)
    )


__all__ = ["AdapterConfig", "read_adapter_config"]
