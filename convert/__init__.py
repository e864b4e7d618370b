"""PyTorch (diffusers) checkpoints to ours and back, without PyTorch.

Importing the package is cheap: each public name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convert.choices import DIALECTS
    from convert.command import cli_arguments, run
    from convert.conversion import convert
    from convert.errors import ConversionError
    from convert.export import to_diffusers
    from convert.fuse import fuse_lora
    from convert.lora import LoraChoice
    from convert.pair import convert_pair, pair_to_diffusers
    from convert.report import ConversionReport

__all__ = [
    "DIALECTS",
    "ConversionError",
    "ConversionReport",
    "LoraChoice",
    "cli_arguments",
    "convert",
    "convert_pair",
    "fuse_lora",
    "pair_to_diffusers",
    "run",
    "to_diffusers",
]

# The module of each name, as the imports above say it to type checkers.
_PLACES = {
    "DIALECTS": "choices",
    "ConversionError": "errors",
    "ConversionReport": "report",
    "LoraChoice": "lora",
    "cli_arguments": "command",
    "convert": "conversion",
    "convert_pair": "pair",
    "fuse_lora": "fuse",
    "pair_to_diffusers": "pair",
    "run": "command",
    "to_diffusers": "export",
}


def __getattr__(name: str) -> Any:
    """Loads a public name on first use (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
