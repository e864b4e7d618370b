"""`sixbit compare`: the same prompts and seeds under two configurations."""

import argparse
from pathlib import Path

from sixbit_jax import files
from sixbit_jax.commands import _bundled, _inputs, _shared
from sixbit_jax.commands._configurations import (
    configuration_for,
    distinct,
    names_and_descriptions,
)
from sixbit_jax.commands._names import DEFAULT_CAPTIONS
from sixbit_jax.commands._settings import asked_size, settings_for
from sixbit_jax.commands._tensors import read_conditions

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
  sixbit compare 6bit dvd-quant
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
    _inputs.add_model_arguments(parser)
    _inputs.add_recipe_argument(parser)
    parser.add_argument(
        "--cache-format",
        choices=("bf16", "int8", "nvfp4", "float32"),
        default="bf16",
        help="storage of the delta cache (bf16)",
    )
    _bundled.add_report_arguments(parser)
    _shared.add_sampling_arguments(parser)
    _shared.add_pair_argument(parser)
    size = parser.add_argument_group("size, in latents")
    _shared.add_size_arguments(size, "default: the training size")
    _shared.add_condition_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from sixbit_jax.recipes import recipe_of
    from sixbit_jax.report.comparison import Comparison
    from sixbit_jax.report.write import write_report

    prompts = _inputs.read_prompts(args, DEFAULT_CAPTIONS)
    conditions = read_conditions(args, rows=len(prompts.names))
    with files.replaced_directory(args.out, _shared.REPORT) as directory:
        models = _inputs.load_models(
            args,
            recipe=None if args.recipe is None else recipe_of(args.recipe),
            second_guidance=args.guidance_2,
        )
        chosen = settings_for(
            args,
            models.plain,
            size=asked_size(args),
            captions=prompts.captions,
            as_given=args.as_given,
        )
        configurations = distinct(
            [
                configuration_for(
                    spec,
                    plain=models.plain,
                    quantized=models.quantized,
                    steps=chosen.num_steps,
                    cache_format=args.cache_format,
                )
                for spec in (args.first, args.second)
            ]
        )
        runs = _bundled.run_all(args, configurations, chosen, prompts, conditions)
        scores = ()
        if prompts.captions:
            scores = tuple(_bundled.caption_scores(runs, prompts.names))
        comparison = Comparison(prompts.names, runs, scores)
        names = write_report(
            directory,
            comparison,
            title=f"{runs[1].name} against {runs[0].name}",
            facts=_bundled.settings(
                args,
                chosen,
                configurations={c.name: c.description for c in configurations},
                cache_format=args.cache_format,
            ),
            notes=_bundled.notes(runs),
        )
    _bundled.print_result(comparison, args.out, names)
    return 0
