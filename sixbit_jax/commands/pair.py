"""`sixbit pair`: two converted networks of one pipeline in one directory."""

import argparse
from pathlib import Path

from sixbit_jax import files
from sixbit_jax.commands import _numbers

DESCRIPTION = """\
Joins two networks that were converted one by one, for high and for low noise, into the
directory of a pair, as `sixbit convert` makes it of a root with both. Files are copied.
"""
EPILOG = """\
example, from two files in the original layout:
  sixbit convert wan2.2_t2v_high_noise_14B.safetensors high --weights nvfp4
  sixbit convert wan2.2_t2v_low_noise_14B.safetensors low --weights nvfp4
  sixbit pair high low wan2.2-a14b
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    for name, text in (("high", "noise that is high"), ("low", "what follows")):
        parser.add_argument(
            name, metavar=name.upper(), type=Path, help=f"directory, for {text}"
        )
    parser.add_argument(
        "destination", metavar="OUT", type=Path, help="directory to make"
    )
    parser.add_argument(
        "--boundary",
        type=_numbers.real(0.0, 1.0),
        help="share of the noise from which HIGH runs (0.9 from images, 0.875 from "
        "text)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from sixbit_jax.checkpoint.pair import join_pair, read_boundary

    join_pair(args.high, args.low, args.destination, boundary=args.boundary)
    said = files.shown(args.destination)
    print(f"{said}: a pair that changes at {read_boundary(args.destination):g}")
    return 0
