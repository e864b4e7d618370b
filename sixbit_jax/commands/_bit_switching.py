"""delta of delta-guided bit switching, found by sampling with it."""

import argparse
from typing import Any

from sixbit_jax.commands._calibration import Sampler, say
from sixbit_jax.files import shown

_ROUNDS = 3
_TOLERANCE = 0.05


def switch_bits(
    args: argparse.Namespace, model: Any, sampler: Sampler, count: int
) -> int:
    """Finds delta for `--bits` and writes the policy.

    Records runs whose steps are all wide, finds delta by replaying them, and finds it
    again on runs that switch, whose output changes by another amount.

    Args:
      args: the targets and options of `sixbit calibrate`.
      model: with the recipe's weights.
      sampler: from `make_sampler`.
      count: prompts to record.

    Returns:
      Exit status 0.

    Raises:
      ValueError: a plot is asked for (there is no fit to draw), or the bits cannot be
        reached in so few steps.
    """
    import numpy as np

    from sixbit_jax.calibration import PolicyFile, find_delta, save_policy
    from sixbit_jax.policies import activation_bits, fixed
    from sixbit_jax.recipes import recipe_of
    from sixbit_jax.report.tables import facts_table, print_table
    from sixbit_jax.sampling.api import block_grid

    if args.plot is not None:
        raise ValueError("--plot: expected none with --recipe dvd-quant, found one")
    if args.int8_attention is not None:
        raise ValueError(
            "--int8-attention: expected none with --recipe dvd-quant, found "
            f"{args.int8_attention}"
        )
    recipe = recipe_of(args.recipe)
    low, high = recipe.routes
    options = {"arq_block": recipe.arq_block}
    say(f"recording {count} runs of {args.steps} steps")
    sampled = sampler(fixed(route=high), count, **options)
    tried: list[tuple[float, float]] = []
    for _ in range(_ROUNDS):
        changes = np.stack([trace.output_change for trace in sampled.traces])
        delta = find_delta(changes, args.bits, low_bits=low.bits, high_bits=high.bits)
        policy = recipe.policy(model, delta=delta.delta)
        sampled = sampler(policy, count, **options)
        route = np.stack([trace.route for trace in sampled.traces])
        skip = np.stack([trace.skip for trace in sampled.traces])
        bits = activation_bits(route, skip, block_grid(model))
        tried.append((delta.delta, bits))
        say(f"delta {delta.delta:.5g}: {bits:.2f} activation bits")
        if abs(bits - args.bits) <= _TOLERANCE:
            break
    found, bits = min(tried, key=lambda pair: abs(pair[1] - args.bits))
    policy_file = PolicyFile.for_model(
        model,
        delta=found,
        low=low.name,
        high=high.name,
        purify=False,
        calibration={
            "recipe": recipe.name,
            "target_bits": args.bits,
            "activation_bits": bits,
            "recorded_runs": count,
            "steps": args.steps,
            "guidance": args.guidance,
        },
    )
    save_policy(policy_file, args.out)
    facts = {
        "delta": f"{found:.5g}",
        "activation bits": f"{bits:.2f} (target {args.bits})",
        "routes": f"{low.name}, {high.name}",
    }
    print_table(facts_table(facts))
    name = recipe.name
    print(
        f"{shown(args.out)}: for `sixbit sample --recipe {name} --policy` and `compare`"
    )
    return 0
