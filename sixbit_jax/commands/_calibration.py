"""Threshold and tau of a policy, found by sampling with it."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sixbit_jax.commands import _inputs, _shared

_ROUNDS = 3
_BITS_TOLERANCE = 0.05
_SKIP_TOLERANCE = 0.015


class Sampled(NamedTuple):
    """Latents [prompts, F, C, H, W] and one trace per prompt."""

    latents: Any
    traces: list[Any]


Sampler = Callable[..., Sampled]
"""(policy, number of prompts, **options of `sample`) -> what was sampled."""


def make_sampler(
    args: argparse.Namespace, models: _inputs.Models, prompts: _inputs.Prompts
) -> Sampler:
    """Samples the first prompts one by one, each with a plan and a seed of its own."""
    import jax
    import numpy as np

    from sixbit_jax.commands.sample import latent_shape
    from sixbit_jax.sampling.api import prepare, run_jitted
    from sixbit_jax.sampling.options import Execution, Guidance, Prompt

    scheduler = _shared.scheduler_for(models.header, args.scheduler)
    shape = latent_shape(models.quantized, None, None, None)
    negative = None if prompts.negative is None else prompts.negative[None]
    execution = Execution(
        batched_guidance=args.batched_guidance,
        dtype=_shared.compute_dtype(args.dtype),
        cache_format=args.cache_format,
        attention=args.attention,
        progress=not args.quiet,
    )

    def run_first(policy: Any, count: int, **options: Any) -> Sampled:
        latents, traces = [], []
        for number, embeds in enumerate(prompts.embeds[:count]):
            prepared = prepare(
                models.quantized,
                scheduler,
                Prompt(embeds[None], negative),
                latent_shape=shape,
                num_steps=args.steps,
                guidance=Guidance(args.guidance),
                seed=args.seed + number,
                policy=policy,
                execution=execution,
                **options,
            )
            result = run_jitted(*prepared)
            latents.append(np.asarray(result.latents[0]))
            traces.append(jax.tree.map(np.asarray, result.trace))
        return Sampled(np.stack(latents), traces)

    return run_first


def search(
    args: argparse.Namespace,
    model: Any,
    sampler: Sampler,
    recorded: Sampled,
    fit: Any,
) -> Any:
    """Threshold and tau; each is found with the other one in place.

    Skips change which steps count, and refreshes are wider than DMPQ alone would have
    them: the threshold is found again on runs that skip, and tau again if that moved
    the skips.

    Args:
      args: the targets and options of `sixbit calibrate`.
      model: with NVFP4 weights.
      sampler: from `make_sampler`.
      recorded: full-precision activations, with errors.
      fit: the predictor, fitted on `recorded`.

    Returns:
      A `PolicyFile`.
    """
    import numpy as np

    from sixbit_jax.calibration import PolicyFile
    from sixbit_jax.sampling.api import block_grid

    grid = block_grid(model)
    skipping = args.skips > 0 or args.max_drift is not None
    purify = skipping and not args.no_purify
    numbers: dict[str, Any] = {
        "predictor": fit.predictor,
        "residual": args.residual,
        "final_int8": args.final_int8,
        "max_skips": args.max_skips,
        "warmup": args.warmup,
        "together": args.together,
        "shared": args.shared,
        "purify": purify,
        "outlier_ratio": args.outlier_ratio,
        "refresh_int8": not args.no_refresh_int8,
        "tau": None,
    }
    if args.int8_attention is not None:
        gamma = _stack(recorded.traces, "gamma")
        limit = float(np.quantile(gamma, args.int8_attention))
        numbers["attention_max_gamma"] = limit
    numbers["threshold"] = _closed_threshold(
        recorded._replace(traces=[_no_bf16(t) for t in recorded.traces]),
        numbers,
        grid,
        args.bits,
    )

    def sample_now() -> Sampled:
        policy = PolicyFile.for_model(model, **numbers).policy()
        return sampler(policy, args.search_prompts)

    def sample_at_target() -> Sampled:
        if skipping:
            return _find_tau(args, model, sampler, recorded, numbers)
        return sample_now()

    final = sample_at_target()
    cost = _cost(final, grid)
    for _ in range(_ROUNDS):
        if abs(cost["activation_bits"] - args.bits) <= _BITS_TOLERANCE:
            break
        threshold = _closed_threshold(final, numbers, grid, args.bits)
        if threshold == numbers["threshold"]:
            break
        say(f"{cost['activation_bits']:.2f} activation bits: threshold {threshold:.5g}")
        numbers["threshold"] = threshold
        final = sample_now()
        cost = _cost(final, grid)
        off = abs(cost["skip_fraction"] - args.skips) > 2 * _SKIP_TOLERANCE
        if skipping and off and args.max_drift is None:
            final = sample_at_target()
            cost = _cost(final, grid)
    if abs(cost["activation_bits"] - args.bits) > 5 * _BITS_TOLERANCE:
        say(
            f"warning: {args.bits} activation bits were not reached, the nearest are "
            f"{cost['activation_bits']:.2f}: blocks that return from skipping run in "
            "INT8 or BF16 (fewer --skips, a larger --outlier-ratio, --no-refresh-int8)"
        )
    notes = {
        "target_bits": args.bits,
        "target_skips": args.skips if args.max_drift is None else None,
        "max_drift": args.max_drift,
        **cost,
        "drift": _drift(final, recorded),
        "recorded_runs": len(recorded.traces),
        "steps": args.steps,
        "guidance": args.guidance,
        "cache_format": args.cache_format,
        "attention": args.attention,
        "sites": fit.summary(),
    }
    return PolicyFile.for_model(model, calibration=notes, **numbers)


def _no_bf16(trace: Any) -> Any:
    """A full-precision trace as one whose routes are still open."""
    import numpy as np

    from sixbit_jax.routes import Route

    return trace._replace(route=np.full_like(trace.route, Route.INT8))


def _cost(sampled: Sampled, grid: Any) -> dict[str, float]:
    from sixbit_jax.policies import activation_bits, skip_fraction

    route, skip = _stack(sampled.traces, "route"), _stack(sampled.traces, "skip")
    return {
        "activation_bits": activation_bits(route, skip, grid),
        "skip_fraction": skip_fraction(skip),
    }


def _closed_threshold(
    sampled: Sampled, numbers: dict[str, Any], grid: Any, target_bits: float
) -> float:
    """The threshold for the target on runs with skips and refreshes as they were.

    It knows every option of the policy, and counts the sites
    that the outlier rule put into BF16.
    """
    import numpy as np

    from sixbit_jax.calibration import Recording
    from sixbit_jax.policies import activation_bits
    from sixbit_jax.report.decisions import decisions
    from sixbit_jax.routes import Route

    seen = Recording.from_traces(sampled.traces)
    values = decisions(
        seen, numbers["predictor"], grid, residual=numbers["residual"]
    ).predicted
    purified = _stack(sampled.traces, "route") == Route.BF16
    wide = np.zeros(values.shape, bool)
    if numbers["purify"] and numbers["refresh_int8"]:
        wide |= _stack(sampled.traces, "refresh")[..., None]
    steps = values.shape[1]
    wide[:, steps - numbers["final_int8"] :] = True
    levels = np.quantile(values[np.isfinite(values)], np.linspace(0, 1, 301))
    candidates = np.unique(np.maximum(np.append(levels, 1.01 * levels[-1]), 0.0))

    def distance(threshold: float) -> float:
        low = (values <= threshold) & ~wide  # false for NaN
        route = np.where(low, Route.NVFP4, Route.INT8)
        route = np.where(purified, Route.BF16, route)
        return abs(activation_bits(route, seen.skip, grid) - target_bits)

    return float(min(candidates, key=distance))


def _find_tau(
    args: argparse.Namespace,
    model: Any,
    sampler: Sampler,
    recorded: Sampled,
    numbers: dict[str, Any],
) -> Sampled:
    """Puts tau for the target into `numbers`; returns what was sampled with it."""
    from sixbit_jax.calibration import PolicyFile, find_largest, find_target
    from sixbit_jax.policies import skip_fraction

    tried: dict[float, Sampled] = {}

    def attempt(tau: float) -> tuple[float, float]:
        policy = PolicyFile.for_model(model, **(numbers | {"tau": tau})).policy()
        tried[tau] = sampler(policy, args.search_prompts)
        skipped = skip_fraction(_stack(tried[tau].traces, "skip"))
        drift = _drift(tried[tau], recorded)
        say(f"tau {tau:.5g}: {100 * skipped:.1f} % skipped, drift {drift:.4f}")
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
        found = find_target(skipped_at, args.skips, tolerance=_SKIP_TOLERANCE)
    numbers["tau"] = found.value
    return tried[found.value]


def _drift(sampled: Sampled, reference: Sampled) -> float:
    from sixbit_jax.metrics import latent_drift

    count = len(sampled.latents)
    return float(latent_drift(sampled.latents, reference.latents[:count]).mean())


def _stack(traces: Sequence[Any], name: str) -> Any:
    import numpy as np

    return np.stack([getattr(trace, name) for trace in traces])


def say(message: str) -> None:
    print(message, file=sys.stderr)
