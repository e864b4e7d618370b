"""Rule tables: which tensor of a checkpoint becomes which parameter of ours.

A rule pairs two templates. `{layer}` stands for a number, `{leaf}` for weight or bias,
`{name:a|b}` for one of several words; fields of the source appear in the target:

    Rule("blocks.{layer}.attn.{proj:to_q|to_k}.{leaf}", "blocks.{layer}.{proj}.{leaf}")

The same table is read backwards when a model is written for diffusers.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from convert.errors import ConversionError
from convert.safetensors_file import TensorInfo
from sixbit_jax.reading.messages import several

_FIELD = re.compile(r"\{(\w+)(?::([^}]*))?\}")
_BUILT_IN = {"layer": r"\d+", "leaf": "weight|bias"}

# Keys that only the original repositories have, before diffusers renamed them; behind
# no prefix (`prefixes`).
_FOREIGN = {
    "Wan": r"blocks\.\d+\.self_attn\.",
    "HunyuanVideo": r"(double|single)_blocks\.\d+\.",
    "CogVideoX (SAT)": r"(mixins|transformer\.layers)\.",
    "Stable Diffusion": r"(input_blocks|middle_block|joint_blocks)\.\d+\.",
}


class Transform(NamedTuple):
    """A change of layout between the checkpoint and ours.

    Attributes:
      forward: checkpoint array -> ours.
      backward: ours -> checkpoint array.
      source_shape: our shape -> shape in the checkpoint.
    """

    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]
    source_shape: Callable[[tuple[int, ...]], tuple[int, ...]]


IDENTITY = Transform(lambda x: x, lambda x: x, lambda shape: shape)


@dataclass(frozen=True)
class Rule:
    """One line of a rule table.

    >>> rule = Rule("block.{layer}.{proj:q|k}.{leaf}", "blocks.{layer}.{proj}.{leaf}")
    >>> rule.to_target("block.3.q.weight")
    'blocks.3.q.weight'
    >>> rule.to_source("blocks.3.k.bias")
    'block.3.k.bias'

    Attributes:
      source: template of the checkpoint's key.
      target: template of our parameter path.
      transform: change of layout.
    """

    source: str
    target: str
    transform: Transform = IDENTITY

    @cached_property
    def _fields(self) -> dict[str, str]:
        pairs = _FIELD.findall(self.source)
        return {name: words or _BUILT_IN[name] for name, words in pairs}

    def _pattern(self, template: str) -> re.Pattern[str]:
        text, position = "", 0
        for match in _FIELD.finditer(template):
            text += re.escape(template[position : match.start()])
            text += f"(?P<{match[1]}>{self._fields[match[1]]})"
            position = match.end()
        return re.compile(text + re.escape(template[position:]))

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        return self._pattern(self.source), self._pattern(self.target)

    def to_target(self, key: str) -> str | None:
        """Our path for a checkpoint's key, or None if the rule is about another."""
        return self._rename(key, self._patterns[0], self.target)

    def to_source(self, path: str) -> str | None:
        """The checkpoint's key for our path, or None if the rule is about another."""
        return self._rename(path, self._patterns[1], self.source)

    @staticmethod
    def _rename(key: str, pattern: re.Pattern[str], template: str) -> str | None:
        match = pattern.fullmatch(key)
        if match is None:
            return None
        return _FIELD.sub(lambda field: match[field[1]], template)


@dataclass(frozen=True)
class Assignment:
    """The tensor that becomes one parameter."""

    key: str
    tensor: TensorInfo
    rule: Rule


@dataclass(frozen=True)
class RuleTable:
    """How checkpoints of one network map to ours.

    Attributes:
      model_class: the class name in `config.json`.
      stacks: submodules of ours whose leaves are stacked over layers.
      rules: one rule per kind of parameter.
      ignored: patterns of keys that carry no parameter; reported, not converted.
    """

    model_class: str
    stacks: tuple[str, ...]
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()

    def source_of(self, path: str) -> tuple[str, Rule]:
        """The checkpoint's key and the rule of one of our parameter paths.

        Raises:
          ConversionError: if no rule makes that path.
        """
        for rule in self.rules:
            key = rule.to_source(path)
            if key is not None:
                return key, rule
        raise ConversionError(
            f"{self.model_class}: expected a rule for every parameter, found none for "
            f"{path}"
        )

    def assign(
        self,
        tensors: Mapping[str, TensorInfo],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> tuple[dict[str, Assignment], list[str]]:
        """Accounts for every key of a checkpoint.

        Args:
          tensors: what the checkpoint holds.
          shapes: shapes of all our parameters, one path per layer.

        Returns:
          The assignment of each path, and the keys that were ignored by name.

        Raises:
          ConversionError: lists all missing, unexpected and mis-shaped keys, and those
            that are not floating point.
        """
        assigned: dict[str, Assignment] = {}
        missing, misshaped, not_float = [], [], []
        expected = set()
        for path, shape in shapes.items():
            key, rule = self.source_of(path)
            expected.add(key)
            if key not in tensors:
                missing.append(key)
                continue
            tensor = tensors[key]
            wanted = rule.transform.source_shape(tuple(shape))
            if tensor.shape != wanted:
                misshaped.append(
                    f"{key}: expected {list(wanted)}, found {list(tensor.shape)}"
                )
            if not tensor.is_float:
                not_float.append(f"{key}: {tensor.dtype}")
            assigned[path] = Assignment(key, tensor, rule)
        rest = sorted(tensors.keys() - expected)
        ignored = [k for k in rest if any(re.fullmatch(p, k) for p in self.ignored)]
        unexpected = [k for k in rest if k not in ignored]
        sections = {
            "missing": collapse(missing),
            "unexpected": collapse(unexpected),
            "of another shape": misshaped,
            "not floating point": not_float,
        }
        problems = [
            f"{title} ({len(lines)}):\n    " + "\n    ".join(lines)
            for title, lines in sections.items()
            if lines
        ]
        if problems:
            raise ConversionError(
                "\n  ".join(
                    [
                        f"keys of the checkpoint do not fit a {self.model_class} of "
                        f"its config (expected {len(shapes)}, found {len(tensors)}):",
                        *problems,
                    ]
                )
            )
        return assigned, ignored


def foreign_layout(keys: Iterable[str]) -> str | None:
    """Names the original repository whose key names these are, if any."""
    keys = list(keys)
    for name, pattern in _FOREIGN.items():
        if any(re.match(pattern, key) for key in keys):
            return name
    return None


def rename_all(
    tensors: Mapping[str, TensorInfo],
    rename: Callable[[str], str | None],
    layout: str,
    hint: str = "",
) -> dict[str, TensorInfo]:
    """The tensors of a file under the names of another layout.

    Args:
      tensors: by the names of the file.
      rename: gives the other name of a key, or None.
      layout: whose names they are, for the error.
      hint: what other keys may mean, likewise.

    Raises:
      ConversionError: lists the keys that have no other name.
    """
    names = {key: rename(key) for key in tensors}
    if unknown := [key for key, name in names.items() if name is None]:
        raise other_keys(unknown, layout, hint)
    return {name: tensors[key] for key, name in names.items() if name is not None}


def first_rule(rules: Iterable[Rule], key: str) -> str | None:
    """The name that the first rule which knows a key gives it."""
    names = (rule.to_target(key) for rule in rules)
    return next((name for name in names if name is not None), None)


def other_keys(unknown: Iterable[str], layout: str, hint: str = "") -> ConversionError:
    """The error for keys that are not of the original layout of a network."""
    start = (
        f"expected only keys of the original layout of {layout}, found others{hint}:"
    )
    return ConversionError("\n  ".join([start, *several(collapse(unknown))]))


def collapse(keys: Iterable[str]) -> list[str]:
    """Writes keys that differ only in their first number as one.

    >>> collapse(["blocks.0.w", "blocks.1.w", "blocks.3.w", "norm.w"])
    ['blocks.[0-1,3].w', 'norm.w']
    """
    groups: dict[tuple[str, str], list[int]] = {}
    plain: list[str] = []
    for key in keys:
        match = re.match(r"(.*?\.)(\d{1,9})(\..*)$", key)
        if match is None:
            plain.append(key)
        else:
            groups.setdefault((match[1], match[3]), []).append(int(match[2]))
    for (before, after), numbers in groups.items():
        ranges = _ranges(sorted(numbers))
        inner = ranges if len(numbers) == 1 else f"[{ranges}]"
        plain.append(f"{before}{inner}{after}")
    return sorted(plain)


def _ranges(numbers: list[int]) -> str:
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in spans)
