"""Layouts of the repositories in which networks were published, before diffusers.

A layout is known by its key names, gives diffusers' (transformers') names for them, and
reads off the shapes what no file says. Files in it need no config.json.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from convert import (
    original_clip,
    original_hunyuan,
    original_umt5,
    original_wan,
    original_wan_vae,
)
from convert.errors import ConversionError
from convert.rules import foreign_layout
from convert.safetensors_file import TensorInfo

Tensors = Mapping[str, TensorInfo]


class Layout(NamedTuple):
    """One repository's names.

    Attributes:
      is_own: whether tensors have them.
      renamed: the tensors under diffusers' names.
      config_of: the `config.json` of tensors under diffusers' names.
    """

    is_own: Callable[[Tensors], bool]
    renamed: Callable[[Tensors], dict[str, TensorInfo]]
    config_of: Callable[[Tensors], dict[str, Any]]


def _is_wan(tensors: Tensors) -> bool:
    return foreign_layout(tensors) == "Wan"


_LAYOUTS = (
    Layout(_is_wan, original_wan.renamed, original_wan.config_of),
    *(
        Layout(module.is_original, module.renamed, module.config_of)
        for module in (
            original_hunyuan,
            original_wan_vae,
            original_umt5,
            original_clip,
        )
    ),
    # These have diffusers' (transformers') names already.
    Layout(original_umt5.is_transformers, dict, original_umt5.config_of),
    Layout(original_wan.is_whole, dict, original_wan.config_of),
)


def by_diffusers(
    tensors: Tensors, config: Mapping[str, Any] | None, directory: Path
) -> tuple[Tensors, Mapping[str, Any] | None]:
    """The tensors under diffusers' names, and their config.json.

    Args:
      tensors: without prefixes.
      config: the config.json beside them; for original names, that of another library
        (or another component) with other words, whose `quantization_config` alone is
        taken.
      directory: of the files, for errors.

    Returns:
      Tensors and configuration; None where there is no config.json and the tensors do
      not tell.

    Raises:
      ConversionError: for a layout that is not read, and keys outside of the layout.
    """
    for layout in _LAYOUTS:
        if not layout.is_own(tensors):
            continue
        found = layout.renamed(tensors)
        if config is not None and found.keys() == tensors.keys():
            return found, config
        kept = {} if config is None else config
        return found, layout.config_of(found) | {
            key: value for key, value in kept.items() if key == "quantization_config"
        }
    other = foreign_layout(tensors)
    if other is not None:
        raise ConversionError(
            f"{directory}: expected the diffusers layout, found the original layout of "
            f"{other}; use the model's diffusers repository (with model_index.json)"
        )
    return tensors, config


__all__ = ["by_diffusers"]
