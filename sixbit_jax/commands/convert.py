"""`sixbit convert`: the converter's own command line, under this name."""

import argparse

from convert import cli_arguments
from convert import run as run_converter
from convert.command import DESCRIPTION
from sixbit_jax.cli import USER_ERROR

EPILOG = """\
examples:
  sixbit convert CogVideoX-5b cogvideox-5b-nvfp4 --weights nvfp4
  sixbit convert CogVideoX-2b cogvideox-2b --dtype bfloat16
  sixbit convert cogvideox-5b-nvfp4 exported --to-diffusers
"""

__all__ = ["DESCRIPTION", "EPILOG", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    cli_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command; the converter words its own errors."""
    return USER_ERROR if run_converter(args) else 0
