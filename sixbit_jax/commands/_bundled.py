"""Running the bundled model: captions, runs with progress, scores, and the report."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sixbit_jax import files
from sixbit_jax.commands import _shared
from sixbit_jax.commands._inputs import Prompts
from sixbit_jax.commands._settings import Settings
from sixbit_jax.commands._tensors import chosen_fields


def notes(runs: Sequence[Any]) -> tuple[str, ...]:
    """What a reader of the table must know."""
    import jax

    found = ["All configurations start from the same noise."]
    if len(runs) > 1 and jax.default_backend() == "cpu":
        found.append(
            "On CPUs quantized arithmetic is exact but emulated: its seconds say "
            "nothing about a GPU. Skipped blocks are really not computed."
        )
    return tuple(found)


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of what is measured besides."""
    parser.add_argument(
        "--record-errors",
        action="store_true",
        help="also measure the NVFP4 error of every site (slower; quantized "
        "configurations only)",
    )
    _shared.add_attention_argument(parser, " of quantized configurations")


def run_all(
    args: argparse.Namespace,
    configurations: Sequence[Any],
    chosen: Settings,
    prompts: Prompts,
    conditions: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    """Runs every configuration on every prompt, telling where it is."""
    from sixbit_jax.report.runs import run_prompts
    from sixbit_jax.sampling.api import is_quantized
    from sixbit_jax.sampling.options import Conditions, Execution, Guidance

    runs = []
    for configuration in configurations:

        def tell(number: int, name: str = configuration.name) -> None:
            message = f"{name}, video {number + 1} of {len(prompts.names)}: "
            message += prompts.names[number]
            print(message, file=sys.stderr)

        print(f"{configuration.name}: compiling", file=sys.stderr)
        quantized = is_quantized(configuration.model)
        runs.append(
            run_prompts(
                configuration,
                chosen.scheduler,
                prompts.embeds,
                prompts.negative if chosen.guided else None,
                latent_shape=chosen.latent_shape,
                seed=args.seed,
                execution=Execution(
                    batched_guidance=args.batched_guidance,
                    dtype=_shared.compute_dtype(args.dtype),
                    attention=args.attention if quantized else None,
                    progress=not args.quiet,
                ),
                conditions=Conditions(**(conditions or {})),
                as_given=chosen.as_given,
                prompt_fields=chosen_fields(prompts.fields, guided=chosen.guided),
                on_video=tell,
                num_steps=chosen.num_steps,
                guidance=Guidance(chosen.scale),
                record_errors=args.record_errors and quantized,
            )
        )
    return tuple(runs)


def caption_scores(runs: Sequence[Any], captions: Sequence[str]) -> list[dict]:
    """What the scorer reads from each run's videos, against the captions."""
    from sixbit_jax.demo.scorer import score

    return [score(run.latents, captions).summary() for run in runs]


def settings(args: argparse.Namespace, chosen: Settings, **more: Any) -> dict[str, Any]:
    """What made a report."""
    import jax

    return {
        "command": "sixbit " + args.command,
        "steps": chosen.num_steps,
        "guidance": chosen.scale,
        "scheduler": type(chosen.scheduler).class_name,
        "latent_shape": list(chosen.latent_shape),
        "seed": args.seed,
        "batched_guidance": args.batched_guidance,
        "attention": args.attention,
        "dtype": _shared.compute_dtype(args.dtype).name,
        "backend": jax.default_backend(),
        **more,
        "versions": _shared.versions(),
    }


def print_result(comparison: Any, out: Path, names: Sequence[str]) -> None:
    """The table on the terminal, and where the files are."""
    from sixbit_jax.report.comparison import table_rows
    from sixbit_jax.report.tables import print_table, table

    print_table(table(*table_rows(comparison)))
    print(f"{files.shown(out)}: {', '.join(names[:4])} and {len(names) - 4} more files")
