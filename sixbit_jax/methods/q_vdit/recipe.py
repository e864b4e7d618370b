"""Q-VDiT (arXiv 2505.22167) as a recipe."""

from functools import partial
from typing import Any

import numpy as np
from flax import nnx

from sixbit_jax.methods.q_vdit.method import QVDiTOptions
from sixbit_jax.methods.q_vdit.tune import RangeSearchRecipe, tune_q_vdit, untuned
from sixbit_jax.methods.recipe import Recipe
from sixbit_jax.policies import Policy, chain, delta_gbs, fixed, step_cache, tdc
from sixbit_jax.routes import Route

_ROUTES = {6: Route.INT6, 8: Route.INT8, 4: Route.INT4}


def q_vdit(
    *,
    weight_bits: int = 4,
    activation_bits: int = 6,
    scope: str = "all",
    inner_rank: int = 0,
) -> Recipe:
    """Few-bit weights tuned by distillation, activations of one width per token.

    `quantize(model, trajectories=...)` tunes (`sixbit tune` does it with checkpoints)
    and takes the keyword arguments of `tune_q_vdit`; without trajectories it is range
    search alone. The policy's numbers, all None by default:

      tau             a Temporal Delta Cache on top (`tdc`)
      step_threshold  a whole-step cache on top (`step_cache`)
      delta           8-bit activations again whenever the guided output has changed by
                      so much (`delta_gbs`); needs 4- or 6-bit activations

    How it composes with the rest:

    * Skipping blocks or steps (`tdc`, `step_cache`, `pdr`'s rule B) works as with any
      weights: it does not look at them.
    * DMPQ runs on the packed model, but makes less sense. Its 4-bit route is NVFP4,
      which wants rotated operands, and tuned weights are not rotated: step sizes and
      the estimator's `a` belong to the channels as they are. A predictor and a
      threshold of another model's weights do not fit either; `sixbit calibrate` has to
      run on the tuned model. `delta_gbs` needs none of this.
    * M has one factor for each frame: a tuned model samples videos of the number of
      frames (and text tokens) that it was tuned with, and says so otherwise.
    * BGR and NVFP4 weights are alternatives to the range search, not additions.

    Args:
      weight_bits: 3 to 8.
      activation_bits: 4, 6 or 8. 8 bits are symmetric, as on the INT8 route.
      scope: "all" linears of the blocks, or "attention": feed-forward linears stay at
        8 bits, weights and activations.
      inner_rank: of the adapter inside the quantizer, which packing folds away.

    Raises:
      ValueError: another width or scope.
    """
    if activation_bits not in _ROUTES:
        raise ValueError(
            f"activation_bits: expected one of {sorted(_ROUTES)} (there is a route "
            f"for them), found {activation_bits!r}"
        )
    # 4-bit activations are a route of ours, not one of the paper's widths.
    options = QVDiTOptions(
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        scope=scope,
        inner_rank=inner_rank,
    )
    route = _ROUTES[activation_bits]
    return Recipe(
        name="q-vdit",
        description=f"W{weight_bits}A{activation_bits} on searched ranges, tuned by "
        "distillation from the model's own trajectories (`sixbit tune`)",
        weights=RangeSearchRecipe(weight_bits),
        make_policy=partial(_policy, scope=scope, route=route),
        routes=(route, Route.INT8),
        target_bits=float(activation_bits),
        numbers={"tau": None, "step_threshold": None, "delta": None},
        quantizer=partial(_quantize, options),
    )


def _quantize(
    options: QVDiTOptions,
    model: nnx.Module,
    weights: Any,
    *,
    trajectories: Any = None,
    **tuning: Any,
) -> nnx.Module:
    del weights
    if trajectories is None:
        if tuning:
            raise TypeError(
                f"recipe q-vdit: expected trajectories with {', '.join(tuning)}"
            )
        return untuned(model, options)
    return tune_q_vdit(model, trajectories, options, **tuning)[0]


def _policy(
    model: Any,
    *,
    scope: str,
    route: Route,
    tau: float | None,
    step_threshold: float | None,
    delta: float | None,
) -> Policy:
    if tau is not None and step_threshold is not None:
        raise ValueError(
            "recipe q-vdit: expected one of tau and step_threshold, found both"
        )
    if delta is not None and (scope != "all" or route == Route.INT8):
        raise ValueError(
            "recipe q-vdit: delta switches the activations of all linears between "
            f"fewer bits and 8; found scope {scope!r} and {route.name}"
        )
    if delta is None:
        parts = [fixed(route=_routes(model, scope, route))]
    else:
        parts = [delta_gbs(delta, low=route, high=Route.INT8)]
    if tau is not None:
        parts.append(tdc(tau))
    if step_threshold is not None:
        parts.append(step_cache(step_threshold))
    return chain(*parts)


def _routes(model: Any, scope: str, route: Route) -> Any:
    """One route, or routes [L, S] where feed-forward sites stay at 8 bits."""
    if scope == "all":
        return route
    sites = [Route.INT8 if name.startswith("ff_") else route for name in model.sites]
    return np.tile(np.asarray(sites, np.int32), (model.num_blocks, 1))
