"""Rule tables by the class name that diffusers writes into config.json."""

from collections.abc import Mapping
from typing import Any

from convert import cogvideox, hunyuan_video, wan
from convert.errors import ConversionError
from convert.rules import RuleTable
from sixbit_jax.reading.messages import brief

_TABLES = {
    table.model_class: table
    for table in (cogvideox.TABLE, hunyuan_video.TABLE, wan.TABLE)
}


def table_for(config: Mapping[str, Any]) -> RuleTable:
    """The rule table of a checkpoint's `config.json`.

    Raises:
      ConversionError: if its class is not supported.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in _TABLES:
        raise ConversionError(
            f"config.json _class_name: expected one of {', '.join(sorted(_TABLES))}, "
            f"found {brief(name)}"
        )
    return _TABLES[name]
