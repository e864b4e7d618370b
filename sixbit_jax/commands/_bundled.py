"""Running the bundled model: captions, runs with progress, scores, and the report."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sixbit_jax import files
from sixbit_jax.commands import _shared
from sixbit_jax.commands._inputs import Prompts


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


def sampling_options(args: argparse.Namespace, model: Any) -> dict[str, Any]:
    """Options of `prepare` from the parsed arguments."""
    from sixbit_jax.sampling.api import is_quantized
    from sixbit_jax.sampling.options import Execution, Guidance

    quantized = is_quantized(model)
    return {
        "num_steps": args.steps,
        "guidance": Guidance(args.guidance),
        "execution": Execution(
            batched_guidance=args.batched_guidance,
            dtype=_shared.compute_dtype(args.dtype),
            attention=args.attention if quantized else None,
            progress=not args.quiet,
        ),
        "record_errors": args.record_errors and quantized,
    }


def run_all(
    args: argparse.Namespace,
    configurations: Sequence[Any],
    scheduler: Any,
    prompts: Prompts,
    latent_shape: tuple[int, int, int, int],
) -> tuple[Any, ...]:
    """Runs every configuration on every prompt, telling where it is."""
    from sixbit_jax.report.runs import run_prompts

    runs = []
    for configuration in configurations:

        def tell(number: int, name: str = configuration.name) -> None:
            message = f"{name}, video {number + 1} of {len(prompts.names)}: "
            message += prompts.names[number]
            print(message, file=sys.stderr)

        print(f"{configuration.name}: compiling", file=sys.stderr)
        runs.append(
            run_prompts(
                configuration,
                scheduler,
                prompts.embeds,
                None if args.guidance == 1.0 else prompts.negative,
                latent_shape=latent_shape,
                seed=args.seed,
                on_video=tell,
                **sampling_options(args, configuration.model),
            )
        )
    return tuple(runs)


def caption_scores(runs: Sequence[Any], captions: Sequence[str]) -> list[dict]:
    """What the scorer reads from each run's videos, against the captions."""
    from sixbit_jax.demo.scorer import score

    return [score(run.latents, captions).summary() for run in runs]


def settings(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """What made a report."""
    import jax

    return {
        "command": "sixbit " + args.command,
        "steps": args.steps,
        "guidance": args.guidance,
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
