"""`sixbit calibrate`: record runs, fit the error model, search threshold and tau."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sixbit_jax.commands import _inputs, _shared

DESCRIPTION = """\
Makes a policy for a model: samples prompts with NVFP4 weights and records, for each
block and site, how much the block changed (gamma) and how large the error of NVFP4
activations was; fits the line that predicts one from the other; then finds

  threshold  so that activations are --bits wide on average (NVFP4 4, INT8 8)
  tau        so that --skips of the blocks are skipped, or, with --max-drift, as many
             as keep the latents that near to those of the run without skips

and writes a JSON file for `sixbit sample --policy` and `sixbit compare`. It prints how
strongly gamma and error are correlated, the assumption that the method rests on.
"""
EPILOG = """\
examples:
  sixbit calibrate --out policy.json --plot correlation.png
  sixbit calibrate --model cogvideox-5b-nvfp4 --prompt-embeds prompts.safetensors \\
      --out policy.json --bits 6 --skips 0.3
"""
_ROUNDS = 2
_BITS_TOLERANCE = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="policy (JSON)"
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=Path,
        help="also draw gamma against error for each site (png, svg, pdf)",
    )
    _inputs.add_model_arguments(parser)
    parser.add_argument(
        "--prompts",
        metavar="N",
        type=int,
        default=8,
        help="how many captions of the bundled model's training set to record, where "
        "none are given (8)",
    )
    target = parser.add_argument_group("targets")
    target.add_argument(
        "--bits", type=float, default=6.0, help="mean activation width, 4 to 8 (6.0)"
    )
    skips = target.add_mutually_exclusive_group()
    skips.add_argument(
        "--skips",
        type=float,
        default=0.3,
        help="share of the blocks to skip; 0: no delta cache (0.3)",
    )
    skips.add_argument(
        "--max-drift",
        type=float,
        metavar="D",
        help="skip as much as keeps the relative L2 distance of the latents below D",
    )
    target.add_argument(
        "--search-prompts",
        metavar="N",
        type=int,
        default=2,
        help="prompts to sample for each tau that is tried (2)",
    )
    method = parser.add_argument_group("method")
    method.add_argument(
        "--max-skips", type=int, default=2, help="longest run of skips (2)"
    )
    method.add_argument(
        "--warmup", type=int, default=2, help="steps before the first skip (2)"
    )
    method.add_argument(
        "--no-purify", action="store_true", help="leave out Purified Delta Refresh"
    )
    method.add_argument(
        "--outlier-ratio",
        type=float,
        default=25.0,
        help="of Purified Delta Refresh: a refreshed site whose max|x| / mean|x| "
        "exceeds it runs in BF16 (25)",
    )
    method.add_argument(
        "--cache-format",
        choices=("bf16", "int8", "nvfp4", "float32"),
        default="bf16",
        help="storage of the delta cache while searching (bf16)",
    )
    _shared.add_sampling_arguments(parser)


class _Sampled(NamedTuple):
    """Latents [prompts, F, C, H, W] and one trace per prompt."""

    latents: Any
    traces: list[Any]


Sampler = Callable[..., _Sampled]
"""(policy, number of prompts, **options of `sample`) -> what was sampled."""


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from sixbit_jax.calibration import Recording, fit_predictor, plot_fit, save_policy
    from sixbit_jax.policies import chain
    from sixbit_jax.report.video import replacing

    _check(args)
    prompts = _inputs.read_prompts(args, _calibration_captions(args.prompts))
    models = _inputs.load_models(args)
    sampler = _sampler(args, models, prompts)
    count = len(prompts.names)
    _say(f"recording {count} runs of {args.steps} steps")
    recorded = sampler(chain(), count, record_errors=True)
    recording = Recording.from_traces(recorded.traces)
    fit = fit_predictor(recording, tuple(models.quantized.sites))
    policy = _search(args, models.quantized, sampler, recorded, recording, fit)
    save_policy(policy, args.out)
    if args.plot is not None:
        with replacing(args.plot) as partial:
            plot_fit(recording, fit, partial)
    _print(policy, fit)
    print(f"{args.out}: for `sixbit sample --policy` and `sixbit compare`")
    return 0


def _check(args: argparse.Namespace) -> None:
    problems = []
    for path in filter(None, (args.out, args.plot)):
        if not path.absolute().parent.is_dir():
            problems.append(f"{path}: expected an existing directory to write to")
    if not 4.0 <= args.bits <= 8.0:
        problems.append(f"--bits: expected 4 to 8, found {args.bits}")
    if not 0.0 <= args.skips < 1.0:
        problems.append(f"--skips: expected 0 to 1, found {args.skips}")
    if args.max_drift is not None and not args.max_drift > 0:
        problems.append(f"--max-drift: expected more than 0, found {args.max_drift}")
    if args.steps < 2:
        problems.append(f"--steps: expected at least 2, found {args.steps}")
    for name in ("prompts", "search_prompts"):
        if getattr(args, name) < 1:
            option = "--" + name.replace("_", "-")
            problems.append(f"{option}: expected at least 1, found 0 or less")
    if problems:
        raise ValueError("\n  ".join(problems))


def _calibration_captions(count: int) -> tuple[str, ...]:
    """Captions of the training set that no evaluation uses, always the same ones."""
    import numpy as np

    from sixbit_jax.demo.evaluate import evaluation_attributes
    from sixbit_jax.demo.vocabulary import caption_of, training_combinations

    used = {tuple(row) for row in evaluation_attributes().tolist()}
    free = [row for row in training_combinations().tolist() if tuple(row) not in used]
    if count > len(free):
        raise ValueError(f"--prompts: expected at most {len(free)}, found {count}")
    chosen = np.random.default_rng(0).permutation(len(free))[:count]
    return tuple(caption_of(free[i]) for i in chosen)


def _sampler(
    args: argparse.Namespace, models: _inputs.Models, prompts: _inputs.Prompts
) -> Sampler:
    """Samples the first prompts one by one, each with a plan and a seed of its own."""
    import jax
    import numpy as np

    from sixbit_jax.commands.sample import latent_shape
    from sixbit_jax.sampling.api import sample

    scheduler = _shared.scheduler_for(models.header, args.scheduler)
    shape = latent_shape(models.quantized.config, None, None, None)
    guided = args.guidance != 1.0
    negative = (
        prompts.negative[None] if guided and prompts.negative is not None else None
    )

    def run_first(policy: Any, count: int, **options: Any) -> _Sampled:
        latents, traces = [], []
        for number, embeds in enumerate(prompts.embeds[:count]):
            result = sample(
                models.quantized,
                scheduler,
                embeds[None],
                negative_text_embeds=negative,
                latent_shape=shape,
                num_steps=args.steps,
                guidance_scale=args.guidance,
                batched_guidance=args.batched_guidance,
                seed=args.seed + number,
                dtype=_shared.compute_dtype(args.dtype),
                policy=policy,
                cache_format=args.cache_format,
                progress=not args.quiet,
                **options,
            )
            latents.append(np.asarray(result.latents[0]))
            jax.effects_barrier()
            traces.append(jax.tree.map(np.asarray, result.trace))
        return _Sampled(np.stack(latents), traces)

    return run_first


def _search(
    args: argparse.Namespace,
    model: Any,
    sampler: Sampler,
    recorded: _Sampled,
    recording: Any,
    fit: Any,
) -> Any:
    """Threshold and tau; each is found with the other one in place.

    Skips change which steps count, and routes change the deltas that skips are decided
    by: the threshold is found again on runs that skip, and tau again with it.
    """
    from sixbit_jax.calibration import PolicyFile, Recording, find_threshold
    from sixbit_jax.policies import activation_bits, skip_fraction
    from sixbit_jax.sampling.api import block_grid

    grid = block_grid(model)
    skipping = args.skips > 0 or args.max_drift is not None
    purify = not args.no_purify
    options = {"target_bits": args.bits, "refresh_int8": purify}
    threshold = find_threshold(recording, fit.predictor, grid, **options)
    numbers = {
        "predictor": fit.predictor,
        "threshold": threshold.threshold,
        "max_skips": args.max_skips,
        "warmup": args.warmup,
        "purify": purify and skipping,
        "outlier_ratio": args.outlier_ratio,
    }
    tau, final = None, None
    for _ in range(_ROUNDS if skipping else 0):
        tau, final = _find_tau(args, model, sampler, recorded, numbers)
        # Errors were recorded in the first runs only; gammas and skips are enough.
        seen = Recording.from_traces(final.traces)
        bits = activation_bits(_stack(final.traces, "route"), seen.skip, grid)
        if abs(bits - args.bits) <= _BITS_TOLERANCE:
            break
        _say(f"{bits:.2f} activation bits with skips: finding the threshold again")
        threshold = find_threshold(seen, fit.predictor, grid, **options)
        numbers["threshold"] = threshold.threshold
        final = None
    if final is None:
        policy = PolicyFile.for_model(model, tau=tau, **numbers).policy()
        final = sampler(policy, args.search_prompts)
    route, skip = _stack(final.traces, "route"), _stack(final.traces, "skip")
    notes = {
        "target_bits": args.bits,
        "target_skips": args.skips if args.max_drift is None else None,
        "max_drift": args.max_drift,
        "activation_bits": activation_bits(route, skip, grid),
        "skip_fraction": skip_fraction(skip),
        "drift": _drift(final, recorded),
        "recorded_runs": len(recorded.traces),
        "steps": args.steps,
        "guidance": args.guidance,
        "cache_format": args.cache_format,
        "sites": fit.summary(),
    }
    return PolicyFile.for_model(model, tau=tau, calibration=notes, **numbers)


def _find_tau(
    args: argparse.Namespace,
    model: Any,
    sampler: Sampler,
    recorded: _Sampled,
    numbers: dict[str, Any],
) -> tuple[float, _Sampled]:
    """tau for the target, and what was sampled with it."""
    from sixbit_jax.calibration import PolicyFile, find_largest, find_target
    from sixbit_jax.policies import skip_fraction

    tried: dict[float, _Sampled] = {}

    def attempt(tau: float) -> tuple[float, float]:
        policy = PolicyFile.for_model(model, tau=tau, **numbers).policy()
        tried[tau] = sampler(policy, args.search_prompts)
        skipped = skip_fraction(_stack(tried[tau].traces, "skip"))
        drift = _drift(tried[tau], recorded)
        _say(f"tau {tau:.5g}: {100 * skipped:.1f} % skipped, drift {drift:.4f}")
        return skipped, drift

    def skipped_at(tau: float) -> float:
        # tau 0 skips nothing, by definition: no need to sample.
        return attempt(tau)[0] if tau > 0 else 0.0

    def nearness_at(tau: float) -> float:
        drift = attempt(tau)[1]
        if tau == 0 and drift > args.max_drift:
            raise ValueError(
                f"--max-drift: expected more than {drift:.4f}, the drift without any "
                f"skip, found {args.max_drift}"
            )
        return -drift

    if args.max_drift is not None:
        found = find_largest(nearness_at, -args.max_drift, tolerance=0.03)
    else:
        found = find_target(skipped_at, args.skips, tolerance=0.01)
    return found.value, tried[found.value]


def _drift(sampled: _Sampled, reference: _Sampled) -> float:
    from sixbit_jax.metrics import latent_drift

    count = len(sampled.latents)
    return float(latent_drift(sampled.latents, reference.latents[:count]).mean())


def _stack(traces: Sequence[Any], name: str) -> Any:
    import numpy as np

    return np.stack([getattr(trace, name) for trace in traces])


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _print(policy: Any, fit: Any) -> None:
    from sixbit_jax.report.tables import facts_table, print_table, table

    rows = [
        [
            site,
            f"{values['pearson']:.3f}",
            f"{values['pearson_within_blocks']:.3f}",
            f"{values['r_squared']:.3f}",
            f"{values['r_squared_without_gamma']:.3f}",
            f"{values['pairs']:,}",
        ]
        for site, values in fit.summary().items()
    ]
    columns = ["site", "Pearson r", "r within blocks (median)", "R² of the predictor"]
    columns += ["R² without gamma", "pairs"]
    title = "gamma of the step before against the NVFP4 error"
    print_table(table(columns, rows, title=title))
    notes = policy.calibration
    facts = {
        "threshold": f"{policy.threshold:.5g}",
        "activation bits": f"{notes['activation_bits']:.2f} "
        f"(target {notes['target_bits']})",
        "tau": "no delta cache" if policy.tau is None else f"{policy.tau:.5g}",
        "blocks skipped": f"{100 * notes['skip_fraction']:.1f} %",
        "drift": f"{notes['drift']:.4f} (relative L2 of the latents)",
    }
    print_table(facts_table(facts))
