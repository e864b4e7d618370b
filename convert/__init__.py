"""PyTorch (diffusers) checkpoints to ours and back, without PyTorch."""

from convert.command import cli_arguments, run
from convert.conversion import ConversionReport, convert
from convert.errors import ConversionError
from convert.export import to_diffusers
from convert.nvfp4_dialects import CHOICES as DIALECTS
from convert.pair import convert_pair

__all__ = [
    "DIALECTS",
    "ConversionError",
    "ConversionReport",
    "cli_arguments",
    "convert",
    "convert_pair",
    "run",
    "to_diffusers",
]
