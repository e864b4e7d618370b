"""delta of delta-guided bit switching, found by sampling with it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sixbit_jax.calibration.bit_switching import find_delta
from sixbit_jax.calibration.runs import CalibrationRuns
from sixbit_jax.policies import Policy, activation_bits, delta_gbs, fixed
from sixbit_jax.policies.policy_file import PolicyFile
from sixbit_jax.routes import Route
from sixbit_jax.sampling.api import block_grid

_ROUNDS = 3
_TOLERANCE = 0.05


def calibrate_switching(
    runs: CalibrationRuns,
    *,
    bits: float = 6.0,
    routes: tuple[Route, Route] = (Route.NVFP4, Route.INT8),
    make_policy: Callable[[float], Policy] | None = None,
    notes: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> PolicyFile:
    """Finds delta for a mean activation width.

    Records runs whose steps are all wide, finds delta by replaying them, and finds it
    again on runs that switch, whose output changes by another amount.

    Args:
      runs: what is sampled; the model has stored weights.
      bits: mean activation width to reach.
      routes: narrow and wide arithmetic.
      make_policy: delta -> the policy that is sampled with; None is `delta_gbs`.
      notes: to keep in the policy file besides.
      say: told what is going on.

    Raises:
      ValueError: for inputs that do not fit, or bits that cannot be reached in so few
        steps.
    """
    low, high = routes
    grid = block_grid(runs.model)

    def policy_at(delta: float) -> Policy:
        if make_policy is not None:
            return make_policy(delta)
        return delta_gbs(delta, low=low, high=high)

    say(f"recording {runs.count} runs of {runs.num_steps} steps")
    sampled = runs.sample(fixed(route=high))
    tried: list[tuple[float, float]] = []
    for _ in range(_ROUNDS):
        changes = np.stack([trace.output_change for trace in sampled.traces])
        delta = find_delta(changes, bits, low_bits=low.bits, high_bits=high.bits).delta
        sampled = runs.sample(policy_at(delta))
        route = np.stack([trace.route for trace in sampled.traces])
        skip = np.stack([trace.skip for trace in sampled.traces])
        reached = activation_bits(route, skip, grid)
        tried.append((delta, reached))
        say(f"delta {delta:.5g}: {reached:.2f} activation bits")
        if abs(reached - bits) <= _TOLERANCE:
            break
    found, reached = min(tried, key=lambda pair: abs(pair[1] - bits))
    return PolicyFile.for_model(
        runs.model,
        delta=found,
        low=low.name,
        high=high.name,
        purify=False,
        calibration={
            **(notes or {}),
            "target_bits": bits,
            "activation_bits": reached,
            **runs.notes(),
        },
    )


__all__ = ["calibrate_switching"]
