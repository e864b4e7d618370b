"""LoRA files: read, and every key held against the parameters of a network."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convert import lora_hunyuan, lora_names, torch_file
from convert.errors import ConversionError
from convert.lora import Difference, Lora, LoraChoice, LowRank, Update
from convert.lora_config import AdapterConfig, read_adapter_config
from convert.lora_names import Names, grouped, other_kind, part_of
from convert.rules import collapse
from convert.safetensors_file import TensorInfo, read_index, read_metadata
from convert.values import check_finite
from sixbit_jax.reading.messages import named, several

# Of a file for both networks of a pair.
_FIRST, _SECOND = "transformer.", "transformer_2."
_IN_DIRECTORY = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")


def open_lora(
    choice: LoraChoice,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    model: str = "the network",
) -> Lora:
    """Reads a LoRA's index and accounts for each of its keys.

    Args:
      choice: file and strength.
      shapes: of the network's parameters by diffusers' keys.
      model: the network's name, for errors.

    Raises:
      ConversionError: for another kind of adapter, and for keys that are no LoRA's,
        of modules that the network does not have, without their other half, or of
        other shapes; lists all of them.
    """
    file, tensors, config = _read(choice)
    other = other_kind(tensors)
    if other is None and config.dora:
        other = ("DoRA", "use_dora of its configuration")
    if other is not None:
        raise ConversionError(
            f"{file}: expected a LoRA (lora_A and lora_B, lora_down and lora_up, "
            f"diff), found {other[0]} ({named(other[1])}), which is not fused"
        )
    count = len(tensors)
    cut = lora_hunyuan.by_diffusers(tensors, shapes)
    if cut.keys() != tensors.keys() and config.alphas:
        raise ConversionError(
            f"{file}: alpha_pattern: expected none with HunyuanVideo's original names, "
            f"found {', '.join(sorted(config.alphas)[:4])}"
        )
    tensors = cut
    parts = {key: part_of(key) for key in tensors}
    unknown = [key for key, part in parts.items() if part is None]
    known = {key: part for key, part in parts.items() if part is not None}
    names = Names(shapes)
    homes = {key: names.key_of(part) for key, part in known.items()}
    elsewhere = [key for key, home in homes.items() if home is None]
    problems: list[str] = []
    updates: dict[str, list[Update]] = {}
    for module, found in grouped(known).items():
        keys = {part: several_keys[0] for part, several_keys in found.items()}
        problems += [
            f"{named(several_keys[0])} and {named(several_keys[1])}: expected one "
            f"adapter, found two"
            for several_keys in found.values()
            if len(several_keys) > 1
        ]
        if any(homes[key] is None for key in keys.values()):
            continue
        made = _Module(module, keys, tensors, homes, shapes, config, choice.strength)
        problems += made.problems()
        if not problems:
            for home, update in made.updates():
                updates.setdefault(home, []).append(update)
    if not tensors:
        problems = ["it holds no tensor"]
    if elsewhere or unknown or problems:
        sections = {
            f"of no parameter of {model}": several(collapse(elsewhere)),
            "that no LoRA has": several(collapse(unknown)),
            "that do not fit": several(problems),
        }
        fitting = f"{len(known) - len(elsewhere)} of {len(tensors)}"
        raise _refused(file, model, fitting, sections)
    return Lora(choice, file, {k: tuple(u) for k, u in updates.items()}, count)


def _refused(
    file: Path, model: str, fitting: str, sections: Mapping[str, list[str]]
) -> ConversionError:
    """The error that lists all keys that are not the network's."""
    return ConversionError(
        "\n  ".join(
            [
                f"{file}: expected a LoRA of {model}, found {fitting} keys that are, "
                "and keys",
                *(
                    f"{title}:\n    " + "\n    ".join(lines)
                    for title, lines in sections.items()
                    if lines
                ),
            ]
        )
    )


def _read(choice: LoraChoice) -> tuple[Path, dict[str, TensorInfo], AdapterConfig]:
    """The file of tensors, its index, and what is said of rank and alpha."""
    path = file = choice.file
    if path.is_dir():
        found = [path / name for name in _IN_DIRECTORY if (path / name).is_file()]
        if len(found) != 1:
            raise ConversionError(
                f"{path}: expected one of {', '.join(_IN_DIRECTORY)} in the directory, "
                f"found {len(found)}"
            )
        file = found[0]
    if not file.exists():
        raise ConversionError(f"LoRA: expected a file, found nothing at {file}")
    if file.suffix == ".safetensors":
        whole, notes = read_index(file), read_metadata(file)
    elif file.suffix in torch_file.SUFFIXES:
        whole, notes = torch_file.read_index(file), {}
    else:
        raise ConversionError(
            f"{file}: expected one of .safetensors, {', '.join(torch_file.SUFFIXES)}, "
            f"found {file.suffix or 'no suffix'}"
        )
    tensors = _of_half(file, whole, choice.half)
    folder = _SECOND if choice.half == "low" and tensors is not whole else _FIRST
    return file, tensors, read_adapter_config(file, notes, folder=folder[:-1])


def _of_half(
    file: Path, tensors: dict[str, TensorInfo], half: str
) -> dict[str, TensorInfo]:
    """The tensors for one network of a pair, of a file that has those of both.

    Raises:
      ConversionError: if it has both, and it is not known which network this is; or
        only those of the other network.
    """
    second = {key for key in tensors if key.startswith(_SECOND)}
    if not second:
        return tensors
    if not half:
        raise ConversionError(
            f"{file}: expected a LoRA of one network, found keys of both networks of a "
            f"pair ({named(min(second))}); convert the pair, or fuse with "
            "high=FILE or low=FILE"
        )
    found = {
        key.replace(_SECOND, _FIRST, 1) if half == "low" else key: info
        for key, info in tensors.items()
        if (key in second) == (half == "low")
    }
    if not found:
        raise ConversionError(
            f"{file}: expected keys for the network for {half} noise, found those of "
            f"the other alone ({named(min(second))}); name it with low=FILE"
        )
    return found


class _Module(NamedTuple):
    """The keys of one module of the file, each of a parameter of the network."""

    name: str
    keys: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    homes: Mapping[str, str | None]
    shapes: Mapping[str, tuple[int, ...]]
    config: AdapterConfig
    strength: float

    def _shape_problem(self, part: str, expected: tuple[int, ...]) -> list[str]:
        key = self.keys[part]
        found = self.tensors[key].shape
        if _squeezed(found) == _squeezed(expected) or found == expected:
            return []
        return [f"{named(key)}: expected {list(expected)}, found {list(found)}"]

    def problems(self) -> list[str]:
        """What does not fit."""
        found = [
            f"{named(key)}: expected a floating dtype, found {self.tensors[key].dtype}"
            for part, key in self.keys.items()
            if not self.tensors[key].is_float and part != lora_names.ALPHA
        ]
        pair = {part for part in (lora_names.DOWN, lora_names.UP) if part in self.keys}
        # "alpha" sorts first, and is named where there is nothing else.
        needs_pair = pair | ({lora_names.ALPHA} & self.keys.keys())
        if needs_pair and len(pair) < 2:
            there = self.keys[max(needs_pair)]
            found.append(f"{named(there)}: expected its other half, found none")
        elif pair:
            found += self._pair_problems()
        for part in (
            lora_names.DIFF,
            lora_names.DIFF_BIAS,
            lora_names.DIFF_TABLE,
            lora_names.BIAS,
        ):
            if part in self.keys:
                home = self.homes[self.keys[part]]
                assert home is not None
                found += self._shape_problem(part, self.shapes[home])
        return found or self._number_problems()

    def _pair_problems(self) -> list[str]:
        down, up = (self.keys[part] for part in (lora_names.DOWN, lora_names.UP))
        home = self.homes[down]
        assert home is not None
        weight, a, b = self.shapes[home], self.tensors[down], self.tensors[up]
        rows, columns = weight[0], math.prod(weight[1:])
        rank = a.shape[0] if a.shape else 0
        if len(weight) < 2 or not rank:
            return [
                f"{named(down)}: expected the LoRA of a matrix, found {list(a.shape)} "
                f"for a parameter {list(weight)}"
            ]
        found = []
        if math.prod(a.shape[1:]) != columns or len(a.shape) not in (2, len(weight)):
            wanted = [rank, *weight[1:]]
            found.append(f"{named(down)}: expected {wanted}, found {list(a.shape)}")
        if b.shape[:2] != (rows, rank) or math.prod(b.shape[2:]) != 1:
            found.append(f"{named(up)}: expected {[rows, rank]}, found {list(b.shape)}")
        return found

    def _number_problems(self) -> list[str]:
        """Values that are not finite, and an alpha that is no number."""
        found = []
        for key in self.keys.values():
            tensor = self.tensors[key]
            try:
                values = tensor.read()
                if tensor.is_float:
                    check_finite(values, named(key))
            except ConversionError as error:
                found.append(str(error))
        if lora_names.ALPHA in self.keys:
            key = self.keys[lora_names.ALPHA]
            if math.prod(self.tensors[key].shape) != 1:
                found.append(
                    f"{named(key)}: expected one number, found "
                    f"{list(self.tensors[key].shape)}"
                )
        return found

    def updates(self) -> list[tuple[str, Update]]:
        """The updates with the parameters that they change."""
        made: list[tuple[str, Update]] = []
        for part, key in self.keys.items():
            home = self.homes[key]
            assert home is not None
            if part == lora_names.DOWN:
                up = self.tensors[self.keys[lora_names.UP]]
                scale = self.strength * self._scale()
                made.append((home, LowRank(self.tensors[key], up, scale)))
            elif part == lora_names.BIAS:
                scale = self.strength * self._scale()
                made.append((home, Difference(self.tensors[key], scale)))
            elif part.startswith("diff"):
                made.append((home, Difference(self.tensors[key], self.strength)))
        return made

    def _scale(self) -> float:
        """alpha / r."""
        rank = self.tensors[self.keys[lora_names.DOWN]].shape[0]
        if lora_names.ALPHA in self.keys:
            alpha = self.tensors[self.keys[lora_names.ALPHA]].read()
            return float(alpha.reshape(()).astype(np.float64)) / rank
        return self.config.scale(self.name, rank)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


__all__ = ["open_lora"]
