"""`sixbit demo --prompt`: a whole small pipeline, from a person's words to videos."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sixbit_jax import files
from sixbit_jax.commands import _bundled, _shared
from sixbit_jax.commands._configurations import configuration_for
from sixbit_jax.commands._inputs import Prompts
from sixbit_jax.commands._names import PIPELINE_STEPS
from sixbit_jax.commands._networks import load_network
from sixbit_jax.commands._settings import settings_for

PLAIN, QUANTIZED = "pipeline", "pipeline-nvfp4"


def run(args: argparse.Namespace) -> int:
    """Converts the root, samples every prompt in full precision and with a policy."""
    from convert.root import convert_root, is_root
    from sixbit_jax.pipelines.pipeline import load_pipeline
    from sixbit_jax.report.comparison import Comparison
    from sixbit_jax.report.write import write_report

    began = time.perf_counter()
    root: Path = args.pipeline
    if not is_root(root):
        raise ValueError(
            f"--pipeline: expected a diffusers root with text encoder and VAE, found "
            f"none at {files.shown(root)}"
        )
    texts = tuple(args.prompt)
    notes = name_unknown_words(texts)
    with files.replaced_directory(args.out, _shared.REPORT) as directory:
        stored = {}
        for name, weights in ((PLAIN, "keep"), (QUANTIZED, "nvfp4")):
            made = convert_root(
                root, directory / name, weights=weights, refine=weights == "nvfp4"
            )
            stored[name] = {"disk_bytes": made.written_bytes, "seconds": made.seconds}
        pipe = load_pipeline(directory / PLAIN, dtype=_shared.compute_dtype(args.dtype))
        encoded = pipe.encode([*texts, ""])
        prompts = _prompts(texts, encoded)
        plain, quantized = (
            load_network(directory / name) for name in (PLAIN, QUANTIZED)
        )
        if _shared.steps_of(args) is None:
            args.steps = PIPELINE_STEPS
        chosen = settings_for(args, plain)
        specs = ["full"] + ([] if args.policy == "none" else [args.policy])
        runs = _bundled.run_all(
            args,
            [
                configuration_for(
                    spec, plain=plain, quantized=quantized, steps=chosen.num_steps
                )
                for spec in specs
            ],
            chosen,
            prompts,
        )
        runs = _decoded(pipe, runs)
        comparison = Comparison(texts, runs)
        seconds = time.perf_counter() - began
        names = write_report(
            directory,
            comparison,
            title="sixbit demo",
            facts=_bundled.settings(
                args, chosen, converted=stored, total_seconds=seconds
            ),
            notes=(*_bundled.notes(runs), *notes),
        )
    _bundled.print_result(comparison, args.out, names)
    return 0


def name_unknown_words(texts: Sequence[str]) -> tuple[str, ...]:
    """Says on the terminal which words the small model never saw, and returns that."""
    from sixbit_jax.demo.latent.captions import unknown_words, words

    notes = []
    for text in texts:
        if unknown := unknown_words(text):
            notes.append(
                f"{text!r}: the model does not know {', '.join(unknown)}; it will "
                "show something else in their place."
            )
            print(notes[-1], file=sys.stderr)
    if notes:
        print(f"It knows: {', '.join(words())}", file=sys.stderr)
    return tuple(notes)


def _prompts(texts: Sequence[str], encoded: Any) -> Prompts:
    import numpy as np

    for text in texts:
        if cut := encoded.cut.get(text):
            print(f"prompt too long, its end was not read: {cut!r}", file=sys.stderr)
    embeds, negative = (
        np.asarray([encoded.embeds[text].text for text in given], np.float32)
        for given in (texts, [""])
    )
    return Prompts(tuple(texts), embeds, negative[0], False, {})


def _decoded(pipe: Any, runs: Sequence[Any]) -> tuple[Any, ...]:
    """The runs with pixels in [-1, 1] in the place of their latents."""
    import numpy as np

    settings = pipe.settings()
    result = []
    for run in runs:
        print(f"{run.name}: decoding", file=sys.stderr)
        videos = [pipe.decode(latents[None], settings) for latents in run.latents]
        pixels = np.moveaxis(np.stack(videos), -1, 2).astype(np.float32) / 127.5 - 1
        result.append(replace(run, latents=pixels))
    return tuple(result)
