"""Key names of LoRA files: of which module, and which part of its update.

    written by               module                    parts
    PEFT                     base_model.model.X        lora_A[.NAME], lora_B[.NAME]
    diffusers                transformer.X             lora_A, lora_B
    diffusers, before PEFT   [transformer.]X           lora.down, lora.up, to_q_lora
    ComfyUI, LightX2V        diffusion_model.X         lora_down, lora_up, alpha,
                                                       diff, diff_b, diff_m
    kohya, musubi-tuner      lora_unet_X, _ for dots   lora_down, lora_up, alpha

X is the module's name in diffusers or in the repository of the network's authors
(`lora_hunyuan` for HunyuanVideo, whose linears are joined there).
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from convert import original_wan
from convert.prefixes import strip_wrappers

DOWN, UP, ALPHA, BIAS = "down", "up", "alpha", "bias"
DIFF, DIFF_BIAS, DIFF_TABLE = "diff", "diff_b", "diff_m"

_ADAPTER = r"(?:\.[^.]+)?"
_PARTS = {
    rf"(.+)\.(?:lora_A|lora_down){_ADAPTER}\.weight": DOWN,
    rf"(.+)\.(?:lora_B|lora_up){_ADAPTER}\.weight": UP,
    r"(.+)\.(?:lora|lora_linear_layer)\.down\.weight": DOWN,
    r"(.+)\.(?:lora|lora_linear_layer)\.up\.weight": UP,
    rf"(.+)\.(?:lora_B|lora_up){_ADAPTER}\.bias": BIAS,
    r"(.+)\.alpha": ALPHA,
    r"(.+)\.diff": DIFF,
    r"(.+)\.diff_b": DIFF_BIAS,
    r"(.+)\.diff_m": DIFF_TABLE,
}
# Of diffusers' attention processors, before PEFT.
_PROCESSOR = r"(.+)\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight"
_OTHER_KINDS = {
    "DoRA": r".*\.(lora_magnitude_vector(\..*)?|dora_scale|magnitude)",
    "LoHa": r".*\.hada_(w[12]_[ab]|t[12])",
    "LoKr": r".*\.lokr_(w[12](_[ab])?|t2)",
    "LoCon with a Tucker core": r".*\.lora_mid\.weight",
    "OFT or BOFT": r".*\.(oft|boft)_.*",
    "VeRA": r".*\.?vera_.*",
    "(IA)3": r".*\.ia3_l.*",
    "LoRA of embeddings": r".*\.lora_embedding_[AB].*",
}
_PREFIX = re.compile(
    r"(?:(?:base_model\.model|transformer|diffusion_model|model|module|unet|pipe\.dit"
    r"|dit)\.)+"
)
# The rest of the name has _ where the module's has a dot.
_FLAT = re.compile(r"(?:lora_unet|lora_transformer|lora_dit|lycoris)_+")


class Part(NamedTuple):
    """What a key of a LoRA file is.

    Attributes:
      module: name of the module, as the file has it without its prefix.
      part: `DOWN`, `UP`, ...
    """

    module: str
    part: str


def other_kind(keys: Iterable[str]) -> tuple[str, str] | None:
    """The kind of an adapter that is no plain LoRA, and a key that tells it."""
    for key in keys:
        for kind, pattern in _OTHER_KINDS.items():
            if re.fullmatch(pattern, key):
                return kind, key
    return None


def part_of(key: str) -> Part | None:
    """What a key is; None if it is no part of a LoRA.

    >>> part_of("diffusion_model.blocks.0.self_attn.q.lora_down.weight")
    Part(module='blocks.0.self_attn.q', part='down')
    """
    found = re.fullmatch(_PROCESSOR, key)
    if found is not None:
        name = "to_out.0" if found[2] == "out" else f"to_{found[2]}"
        return Part(without_prefix(f"{found[1]}.{name}"), found[3])
    for pattern, part in _PARTS.items():
        found = re.fullmatch(pattern, key)
        if found is not None:
            return Part(without_prefix(found[1]), part)
    return None


def without_prefix(module: str) -> str:
    """The module's own name, dotted or flat."""
    flat = _FLAT.match(module)
    if flat is not None:
        return module[flat.end() :]
    inner = strip_wrappers(module)
    outer = _PREFIX.match(f"{inner}.")
    return inner if outer is None else inner[outer.end() :]


class Names:
    """The modules of a network under all names that LoRA files call them."""

    def __init__(self, keys: Iterable[str]):
        """Takes the network's keys, diffusers' names."""
        self._keys = set(keys)
        self._stems: dict[str, str] = {}
        stems = dict.fromkeys(map(_stem, sorted(self._keys)))
        dotted = {stem: stem for stem in stems}
        for stem in stems:
            original = original_wan.original_of(stem)
            if original is not None:
                dotted.setdefault(original, stem)
        # A module's own name stands before what looks like it with _ for the dots.
        for name, stem in dotted.items():
            self._stems.setdefault(name.replace(".", "_"), stem)
        self._stems |= dotted

    def key_of(self, part: Part) -> str | None:
        """The network's parameter that a part changes; None: it has none such."""
        name = part.module
        if part.part == DIFF_TABLE:
            tables = (f"{name}.modulation", f"{name}.scale_shift_table")
            found = [self._stems[n] for n in tables if n in self._stems]
            return found[0] if found else None
        stem = self._stems.get(name)
        if stem is None:
            return None
        if part.part == DIFF and stem in self._keys:
            return stem
        leaf = "bias" if part.part in (BIAS, DIFF_BIAS) else "weight"
        key = f"{stem}.{leaf}"
        return key if key in self._keys else None


def _stem(key: str) -> str:
    """The module of a weight or bias; other parameters stand for themselves."""
    head, _, leaf = key.rpartition(".")
    return head if leaf in ("weight", "bias") else key


def grouped(parts: Mapping[str, Part]) -> dict[str, dict[str, list[str]]]:
    """Keys by module and part; several adapters in one file have several of a part."""
    found: dict[str, dict[str, list[str]]] = {}
    for key, part in parts.items():
        found.setdefault(part.module, {}).setdefault(part.part, []).append(key)
    return found


__all__ = ["Names", "Part", "grouped", "other_kind", "part_of", "without_prefix"]
