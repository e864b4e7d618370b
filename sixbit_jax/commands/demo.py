"""`sixbit demo`: the bundled model, in full precision and in 6 bits."""

import argparse
import time
from pathlib import Path

from sixbit_jax import files
from sixbit_jax.commands import _bundled, _inputs, _pipeline_demo, _shared
from sixbit_jax.commands._configurations import configuration_for
from sixbit_jax.commands._names import (
    BUNDLED_CHECKPOINT,
    BUNDLED_PIPELINE,
    DEFAULT_CAPTIONS,
    PIPELINE_POLICY,
    RECOMMENDED,
)
from sixbit_jax.commands._networks import load_network
from sixbit_jax.commands._settings import settings_for

DESCRIPTION = """\
Converts the bundled checkpoint (a small CogVideoX that was trained on captioned
videos of moving shapes), samples captions in full precision and with NVFP4 weights
and the recommended 6-bit policy, and writes into --out:

  report.html        everything below on one page
  report.json        figures, settings, versions, seconds
  videos.gif         all videos; single ones as GIF, and as MP4 with the extra `video`
  contact_sheet.png  all frames
  routes_*.png       which arithmetic each site used, and which blocks were skipped
  traces_*.npz       plans and stats of all steps
  model, model-nvfp4, prompts.safetensors
                     input for `sixbit inspect` and `sixbit sample`
"""
EPILOG = """\
examples:
  sixbit demo
  sixbit demo --captions "a cyan cross moves up on a white background" --steps 25
  sixbit demo --prompt "a shiny red ball rolls left past a blue ring, on a dark wall"
Captions are of the form "a COLOUR SHAPE MOTION on a COLOUR background"; a caption
that does not fit is answered with the words there are.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--prompt",
        nargs="+",
        metavar="TEXT",
        help="in your own words, to a whole small pipeline (text encoder, transformer, "
        "VAE) of videos of two objects; words that it does not know are named",
    )
    what.add_argument(
        "--captions",
        nargs="+",
        metavar="TEXT",
        default=list(DEFAULT_CAPTIONS),
        help="what to sample (default: two captions)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("out/demo"),
        help="new directory, or an earlier report to replace (out/demo)",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        type=Path,
        default=BUNDLED_CHECKPOINT,
        help="diffusers directory of another model of the demo's kind",
    )
    parser.add_argument(
        "--policy",
        metavar="FILE.json|NAME|none",
        help="what to put beside full precision: a name of `sixbit compare`, a file of "
        "`sixbit calibrate`, or none (default: the bundled policy, 6bit; with --prompt "
        f"{PIPELINE_POLICY})",
    )
    parser.add_argument(
        "--pipeline",
        metavar="DIR",
        type=Path,
        default=BUNDLED_PIPELINE,
        help="diffusers root for --prompt (the bundled one)",
    )
    _bundled.add_report_arguments(parser)
    _shared.add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import numpy as np
    from safetensors.numpy import save

    from convert import convert
    from sixbit_jax.report.comparison import Comparison
    from sixbit_jax.report.write import write_report

    if args.policy is None:
        args.policy = RECOMMENDED if args.prompt is None else PIPELINE_POLICY
    if args.prompt is not None:
        return _pipeline_demo.run(args)
    began = time.perf_counter()
    captions = tuple(args.captions)
    prompts = _inputs.caption_prompts(captions)
    with files.replaced_directory(args.out, _shared.REPORT) as directory:
        models, stored = {}, {}
        for name, weights in (("model", "keep"), ("model-nvfp4", "nvfp4")):
            made = convert(
                args.checkpoint,
                directory / name,
                weights=weights,
                refine=weights == "nvfp4",
            )
            models[name] = load_network(directory / name)
            stored[name] = {"disk_bytes": made.written_bytes, "seconds": made.seconds}
        tensors = {
            "prompt_embeds": prompts.embeds,
            "negative_prompt_embeds": np.stack([prompts.negative] * len(captions)),
        }
        (directory / "prompts.safetensors").write_bytes(save(tensors))
        chosen = settings_for(args, models["model"], captions=True)
        specs = ["full"] + ([] if args.policy == "none" else [args.policy])
        configurations = [
            configuration_for(
                spec,
                plain=models["model"],
                quantized=models["model-nvfp4"],
                steps=chosen.num_steps,
            )
            for spec in specs
        ]
        runs = _bundled.run_all(args, configurations, chosen, prompts)
        comparison = Comparison(
            captions, runs, tuple(_bundled.caption_scores(runs, captions))
        )
        seconds = time.perf_counter() - began
        names = write_report(
            directory,
            comparison,
            title="sixbit demo",
            facts=_bundled.settings(
                args, chosen, converted=stored, total_seconds=seconds
            ),
            notes=_bundled.notes(runs),
        )
    _bundled.print_result(comparison, args.out, names)
    return 0
