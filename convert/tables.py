"""Rule tables by the class name that diffusers (transformers) writes to config.json."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from convert import (
    clip,
    cogvideox,
    hunyuan_video,
    llama,
    t5,
    vae_cogvideox,
    vae_hunyuan_video,
    vae_wan,
    wan,
)
from convert.errors import ConversionError
from convert.rules import RuleTable
from sixbit_jax import components

_FIXED = {
    table.model_class: table
    for table in (
        cogvideox.TABLE,
        hunyuan_video.TABLE,
        wan.TABLE,
        vae_cogvideox.TABLE,
        vae_hunyuan_video.TABLE,
        vae_wan.TABLE,
        t5.T5_TABLE,
        t5.UMT5_TABLE,
    )
}
# Encoders whose key names depend on what they were saved inside of.
_MADE: dict[str, Callable[[Any, Collection[str]], RuleTable]] = {
    "CLIPTextModel": lambda config, keys: clip.text_table(keys),
    "CLIPVisionModel": clip.vision_table,
    "LlamaModel": llama.table,
}


def table_for(config: Mapping[str, Any], keys: Collection[str] = ()) -> RuleTable:
    """The rule table of a checkpoint.

    Args:
      config: its `config.json`.
      keys: of its tensors.

    Raises:
      ConversionError: if its class is not supported, or its configuration is not.
    """
    try:
        name = components.class_name_of(config)
        if name in _FIXED:
            return _FIXED[name]
        config_type, _ = components.get(name)
        return _MADE[name](config_type.from_dict(config), keys)
    except ValueError as error:
        raise ConversionError(str(error)) from error
