"""The command line: `python -m convert SRC DST`, shared with `sixbit convert`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from convert.choices import DIALECTS, DTYPES, ROTATIONS, WEIGHTS, WRITTEN
from convert.errors import ConversionError

DESCRIPTION = (
    "Converts a PyTorch checkpoint (safetensors, GGUF, torch.save) to a directory that "
    "sixbit_jax loads, one block at a time, or back."
)


def cli_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the converter's arguments to a parser."""
    parser.add_argument(
        "source",
        metavar="SRC",
        help="root of diffusers or of Wan's authors (everything in it: transformers, "
        "text encoders, VAE, tokenizers), one component's directory, or one file of "
        "weights (.safetensors, .gguf, or .bin, .pt, .pth of torch.save; nothing in it "
        "is run), with config.json next to it unless it is of Wan; with "
        "--to-diffusers, a converted directory",
    )
    parser.add_argument(
        "destination", metavar="DST", help="directory to make; must not exist"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="keep",
        help="floating dtype of what is not quantized (default: as in the source)",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        metavar="{keep,nvfp4,uniform2..uniform8,residual2..residual4}",
        default="keep",
        help="nvfp4: 4.5-bit linears of blocks and modulation; uniform2 to uniform8: "
        "the same on uniform grids of 2 to 8 bits; residual2 to residual4: MPQ-DMv2's "
        "residual mixed precision of 2 to 4 bits on average (default: keep)",
    )
    parser.add_argument(
        "--rotation",
        type=int,
        choices=ROTATIONS,
        help="of quantized weights: width of the block Hadamard folded into the "
        "blocks' linears (default: 128; residual weights: 0)",
    )
    parser.add_argument(
        "--refine",
        action="store_true",
        help="of quantized weights: scales of least squared error (DVD-Quant's grid "
        "refinement) instead of those of the largest values",
    )
    _add_source_arguments(parser)
    parser.add_argument(
        "--to-diffusers",
        action="store_true",
        help="the other direction: write SRC as a diffusers directory DST",
    )


def _add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """What is read of SRC, and what is added to it."""
    parser.add_argument(
        "--dialect",
        choices=DIALECTS,
        metavar="NAME",
        default="auto",
        help="layout of packed NVFP4 weights in SRC: "
        f"{', '.join(DIALECTS)} (default: auto, as the files say); with "
        "--to-diffusers modelopt: write NVFP4 weights packed",
    )
    parser.add_argument(
        "--reference",
        metavar="DIR",
        help="the same network unquantized, to check packed weights of SRC against",
    )
    parser.add_argument(
        "--lora",
        metavar="[high=|low=]FILE[:STRENGTH]",
        action="append",
        default=[],
        help="LoRA to add to the weights before they are quantized; may be repeated. "
        "high= or low= (Wan2.2-A14B): for one network of the pair",
    )
    parser.add_argument(
        "--only",
        metavar="FOLDER",
        nargs="+",
        help="of a whole root: convert these components alone",
    )
    parser.add_argument(
        "--encoder-weights",
        choices=WEIGHTS,
        metavar="{keep,nvfp4,uniform2..uniform8}",
        help="of text and image encoders (default: keep with --weights keep, else "
        "uniform8, which is INT8)",
    )
    parser.add_argument(
        "--state-dict",
        metavar="NAME",
        help="of a file of torch.save with several state dicts (raw and EMA weights): "
        "the one to take, as ema or generator_ema",
    )


def run(args: argparse.Namespace) -> int:
    """Runs a parsed command line.

    Returns:
      The exit status: 0, or 1 after printing what was wrong.
    """
    try:
        if args.to_diffusers:
            print(_export(args))
        else:
            for report in _convert(args):
                print(report)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _export(args: argparse.Namespace) -> Path:
    """Writes a converted directory back."""
    from convert.pair import export

    if args.weights != "keep" or args.refine or args.reference or args.lora:
        raise ConversionError(
            "--to-diffusers: expected no --weights, no --refine, no --reference, no "
            "--lora"
        )
    if args.dialect not in ("auto", *WRITTEN):
        raise ConversionError(
            f"--to-diffusers --dialect: expected {' or '.join(WRITTEN)}, found "
            f"{args.dialect}"
        )
    return export(
        args.source,
        args.destination,
        dtype=args.dtype,
        dialect=None if args.dialect == "auto" else args.dialect,
    )


def _convert(args: argparse.Namespace) -> Sequence[object]:
    """Converts a root, a pair or one network, and returns what there is to say."""
    from convert.conversion import convert
    from convert.pair import convert_pair, is_pair
    from convert.root import convert_root, is_root

    fitted = args.weights in ("residual2", "residual3", "residual4")
    if args.refine and (fitted or args.weights == "keep"):
        raise ConversionError(
            "--refine: expected --weights nvfp4 or uniform2 to uniform8, found "
            f"--weights {args.weights}" + (", which is always fitted" if fitted else "")
        )
    options = {
        "dtype": args.dtype,
        "weights": args.weights,
        "rotation": args.rotation,
        "refine": args.refine,
        "dialect": args.dialect,
        "reference": args.reference,
        "lora": args.lora,
        "state_dict": args.state_dict,
    }
    source, destination = args.source, args.destination
    if is_root(source):
        report = convert_root(
            source,
            destination,
            encoder_weights=args.encoder_weights,
            only=args.only or (),
            **options,
        )
        return [report]
    if args.only or args.encoder_weights:
        raise ConversionError(
            "--only and --encoder-weights: expected a root with text encoder or VAE, "
            f"found {source}"
        )
    if is_pair(source):
        return convert_pair(source, destination, **options)
    return [convert(source, destination, **options)]


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m convert`."""
    parser = argparse.ArgumentParser(prog="python -m convert", description=DESCRIPTION)
    cli_arguments(parser)
    return run(parser.parse_args(argv))
