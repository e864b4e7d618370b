"""What the precision of attention costs under the default policy, on the bundled model.

    python -m benchmarks.quality.attention --captions 16 --out attention_quality.json

The same captions and noise in full precision and under the default policy (refined
NVFP4 weights) with 16-bit scores, with 8-bit scores in every block, and with 8-bit
scores in the blocks that are more stable than the median (`int8_attention`).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.quality.study import load_model
from sixbit_jax.benchmark import records
from sixbit_jax.demo import vocabulary
from sixbit_jax.demo.evaluate import evaluation_attributes
from sixbit_jax.demo.model import COGVIDEOX, LATENT_SHAPE
from sixbit_jax.demo.scorer import score
from sixbit_jax.demo.text import encode_captions
from sixbit_jax.metrics import mean_interval, paired_interval, psnr
from sixbit_jax.policies import Policy, chain, int8_attention
from sixbit_jax.quantizers.nvfp4 import NVFP4Recipe, quantize
from sixbit_jax.report.runs import Configuration, Run, run_prompts
from sixbit_jax.sampling.options import Execution

SIXTEEN, EIGHT, STABLE = "16-bit", "8-bit", "8-bit in stable blocks"


def _videos(run: Run) -> np.ndarray:
    return np.moveaxis(np.clip(run.latents, -1, 1), 2, -1)


def median_gamma(run: Run) -> float:
    """The median of gamma over all computed blocks of all steps."""
    gamma = np.stack([trace.gamma for trace in run.traces])
    return float(np.median(gamma[~np.stack([trace.skip for trace in run.traces])]))


def measure(
    model: Any, policy: Policy, captions: Sequence[str], *, steps: int, seed: int = 0
) -> list[dict[str, Any]]:
    """One record per precision of attention.

    Args:
      model: in full precision.
      policy: the policy of its quantized copy.
      captions: one video each.
      steps: denoising steps.
      seed: the seed of the noise of the first caption.
    """
    quantized = quantize(model, NVFP4Recipe(refine=True))

    def sampled(name: str, network: Any, who: Policy, **options: Any) -> Run:
        print(f"{name}: {len(captions)} videos", file=sys.stderr, flush=True)
        return run_prompts(
            Configuration(name, network, who),
            COGVIDEOX.scheduler(),
            encode_captions(list(captions)),
            encode_captions([""])[0],
            latent_shape=LATENT_SHAPE,
            seed=seed,
            num_steps=steps,
            execution=Execution(dtype=jnp.float32, **options),
        )

    reference = _videos(sampled("full precision", model, chain()))
    runs = [
        sampled(SIXTEEN, quantized, policy),
        sampled(EIGHT, quantized, policy, attention="int8"),
    ]
    limit = median_gamma(runs[0])
    runs.append(sampled(STABLE, quantized, chain(policy, int8_attention(limit))))
    found, first = [], None
    for run in runs:
        values = psnr(_videos(run), reference, data_range=2.0)
        first = values if first is None else first
        mean, change = mean_interval(values), paired_interval(values, first)
        found.append(
            {
                "kind": "attention_quality",
                "attention": run.name,
                "max_gamma": limit if run.name == STABLE else None,
                "captions": len(captions),
                "psnr_db": mean.mean,
                "psnr_ci95": [mean.low, mean.high],
                "difference_db": change.mean,
                "difference_ci95": [change.low, change.high],
                "attribute_score": float(score(run.latents, captions).correct.mean()),
                **run.cost(),
            }
        )
    return found


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One line per precision."""
    lines = [
        "| scores | in 8 bits | skipped | PSNR, dB | against 16-bit |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        low, high = row["difference_ci95"]
        lines.append(
            f"| {row['attention']} | {row['share_int8_scores']:.2f} "
            f"| {row['skip_fraction']:.3f} | {row['psnr_db']:.2f} "
            f"| {row['difference_db']:+.2f} [{low:+.2f}, {high:+.2f}] |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    from sixbit_jax.calibration import policy_from_file
    from sixbit_jax.commands._names import BUNDLED_POLICY

    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--captions", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True, help="results file, .json")
    args = parser.parse_args(given)
    model = load_model(None)
    captions = [
        vocabulary.caption_of(row) for row in evaluation_attributes(args.captions)
    ]
    found = measure(
        model, policy_from_file(BUNDLED_POLICY, model), captions, steps=args.steps
    )
    shown = [args.out.name if word == str(args.out) else word for word in given]
    header = records.header(["python", "-m", "benchmarks.quality.attention", *shown])
    records.write(args.out, header, found)
    print(markdown(found))


if __name__ == "__main__":
    main()
