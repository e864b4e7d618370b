"""`sixbit compare`: the same prompts and seeds under two configurations."""

import argparse
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from sixbit_jax.commands import _bundled, _shared
from sixbit_jax.commands._configurations import (
    BUNDLED_CHECKPOINT,
    DEFAULT_CAPTIONS,
    configuration_for,
    names_and_descriptions,
)

DESCRIPTION = """\
Samples the same prompts from the same noise under configuration A (the reference)
and B, and writes the report that `sixbit demo` writes: table, videos, route maps,
curves, traces. Without --model it uses the bundled model and captions.
"""
EPILOG = f"""\
configurations:
{names_and_descriptions()}

examples:
  sixbit compare full w4a4
  sixbit compare w4a8 policy.json --captions "a cyan cross grows on a white background"
  sixbit compare full policy.json --model cogvideox-5b \\
      --quantized-model cogvideox-5b-nvfp4 --prompt-embeds prompts.safetensors
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("first", metavar="A", help="configuration: the reference")
    parser.add_argument("second", metavar="B", help="configuration to compare with it")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("out/compare"),
        help="new directory, or an earlier report to replace (out/compare)",
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--captions", nargs="+", metavar="TEXT", help="for the bundled model"
    )
    prompts.add_argument(
        "--prompt-embeds",
        metavar="FILE",
        type=Path,
        help="as in `sixbit sample`; each row is a prompt (needs --model)",
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        type=Path,
        help="a converted checkpoint, or a diffusers directory of the demo's kind "
        "with --captions (default: the bundled one)",
    )
    parser.add_argument(
        "--quantized-model",
        metavar="DIR",
        type=Path,
        help="the same model converted with --weights nvfp4 (default: rounded in "
        "memory)",
    )
    parser.add_argument(
        "--cache-format",
        choices=("bf16", "int8", "nvfp4", "float32"),
        default="bf16",
        help="storage of the delta cache (bf16)",
    )
    _shared.add_sampling_arguments(parser)


class _Prompts(NamedTuple):
    names: tuple[str, ...]
    embeds: Any
    negative: Any


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from sixbit_jax.commands.sample import latent_shape
    from sixbit_jax.report.comparison import Comparison
    from sixbit_jax.report.write import write_report

    if args.prompt_embeds is not None and args.model is None:
        raise ValueError("--prompt-embeds: expected --model with it, found none")
    prompts = _prompts(args)
    with _shared.report_directory(args.out) as directory:
        plain, quantized, header = _models(args)
        configurations = [
            configuration_for(
                spec,
                plain=plain,
                quantized=quantized,
                steps=args.steps,
                cache_format=args.cache_format,
            )
            for spec in (args.first, args.second)
        ]
        runs = _bundled.run_all(
            args,
            configurations,
            _shared.scheduler_for(header, args.scheduler),
            prompts.names,
            prompts.embeds,
            prompts.negative,
            latent_shape(plain.config, None, None, None),
        )
        scores = ()
        if args.prompt_embeds is None:
            scores = tuple(_bundled.caption_scores(runs, prompts.names))
        comparison = Comparison(prompts.names, runs, scores)
        names = write_report(
            directory,
            comparison,
            title=f"{runs[1].name} against {runs[0].name}",
            facts=_bundled.settings(
                args,
                configurations={c.name: c.description for c in configurations},
                cache_format=args.cache_format,
            ),
            notes=_bundled.notes(runs),
        )
    _bundled.print_result(comparison, args.out, names)
    return 0


def _prompts(args: argparse.Namespace) -> _Prompts:
    import numpy as np

    if args.prompt_embeds is None:
        from sixbit_jax.demo.text import encode_captions
        from sixbit_jax.demo.vocabulary import parse_captions

        captions = tuple(args.captions or DEFAULT_CAPTIONS)
        parse_captions(captions)
        *embeds, negative = encode_captions([*captions, ""])
        return _Prompts(captions, np.stack(embeds), negative)
    from sixbit_jax.commands.sample import read_tensors

    names = ("prompt_embeds", "negative_prompt_embeds")
    tensors = read_tensors(args.prompt_embeds, *names)
    embeds, negative = (tensors.get(name) for name in names)
    embeds = embeds[None] if embeds.ndim == 2 else embeds
    if negative is not None and negative.ndim == 3:
        negative = negative[0]
    return _Prompts(
        tuple(f"prompt {i + 1}" for i in range(len(embeds))), embeds, negative
    )


def _models(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The model with its own weights, with NVFP4 weights, and the header."""
    from sixbit_jax.checkpoint import load
    from sixbit_jax.quantizers.rtn import quantize
    from sixbit_jax.sampling.api import is_quantized

    source = args.model or BUNDLED_CHECKPOINT
    quantized = None
    if (source / "sixbit.json").is_file():
        plain, header = load(source)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            plain, header = _converted(source, Path(scratch) / "model", "keep")
            if args.quantized_model is None:
                quantized, _ = _converted(source, Path(scratch) / "nvfp4", "nvfp4")
    if args.quantized_model is not None:
        quantized, other = load(args.quantized_model)
        if other.config != header.config:
            raise ValueError(
                f"--quantized-model {args.quantized_model}: expected the configuration "
                f"of {source}, found another one"
            )
    if quantized is None:
        quantized = plain if is_quantized(plain) else quantize(plain)
    return plain, quantized, header


def _converted(source: Path, destination: Path, weights: Any) -> tuple[Any, Any]:
    from convert import convert
    from sixbit_jax.checkpoint import load

    convert(source, destination, weights=weights)
    return load(destination)
