"""`sixbit bench`: speed and memory of the sampler on this machine's device."""

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path

from sixbit_jax.commands._targets import check_targets

DESCRIPTION = """\
Times the sampler at a model's real size with random weights: milliseconds per step,
TFLOP/s, peak memory and share of every part, for full precision and for quantized
routes at several skip fractions. Needs a checkout of the repository: the benchmark
is not part of the installed package.
"""
EPILOG = """\
examples:
  sixbit bench --model 5b --out bench.json
  sixbit bench --model path/config.json --frames 5 --only parts --out parts.json
"""
_CHECKOUT = Path(__file__).parents[2]


def _module():
    """`benchmarks.sampling`, from the working directory or the checkout.

    Raises:
      ValueError: the package is installed without its repository.
    """
    if importlib.util.find_spec("benchmarks") is None:
        if not (_CHECKOUT / "benchmarks" / "sampling.py").is_file():
            raise ValueError(
                "bench: expected the folder `benchmarks` of the repository beside the "
                f"package or in the working directory, found none in {_CHECKOUT}"
            )
        sys.path.append(str(_CHECKOUT))
    return importlib.import_module("benchmarks.sampling")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments; without the repository, ends with a message."""
    try:
        module = _module()
    except ValueError as error:
        parser.error(str(error))
    module.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    args.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    check_targets({"--out": args.out}, inputs=(args.trace,))
    return _module().run(args)
