"""`sixbit bench`: speed and memory of the sampler on this machine's device."""

import argparse

from sixbit_jax.benchmark import sampling
from sixbit_jax.commands._targets import check_targets

DESCRIPTION = """\
Times the sampler at a model's real size with random weights: milliseconds per step,
TFLOP/s, peak memory and share of every part, for full precision and for quantized
routes at several skip fractions.
"""
EPILOG = """\
examples:
  sixbit bench --model 5b --out bench.json
  sixbit bench --model path/config.json --frames 5 --only parts --out parts.json
"""

add_arguments = sampling.add_arguments


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    args.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    check_targets({"--out": args.out}, inputs=(args.trace,))
    return sampling.run(args)
