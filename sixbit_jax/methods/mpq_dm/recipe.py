"""MPQ-DMv2 (arXiv 2507.04290) as a recipe; a reconstruction, see `mpq_dm`."""

from dataclasses import replace
from functools import partial
from typing import Any

from flax import nnx

from sixbit_jax.methods.mpq_dm.method import MPQDMOptions
from sixbit_jax.methods.mpq_dm.tune import tune_mpq_dm
from sixbit_jax.methods.mpq_dm.weight_recipe import ResidualRecipe
from sixbit_jax.methods.recipe import Recipe
from sixbit_jax.policies import Policy, chain, fixed, step_cache, tdc
from sixbit_jax.quantizers.nvfp4 import quantize
from sixbit_jax.routes import Route

_ROUTES = {4: Route.INT4, 6: Route.INT6, 8: Route.INT8}


def mpq_dm_v2(
    *,
    weight_bits: int = 3,
    activation_bits: int = 6,
    rotation: int = 0,
    rank: int = 32,
) -> Recipe:
    """Residual mixed precision weights of 2 to 4 bits, tuned by distillation.

    `quantize(model, trajectories=...)` tunes levels and adapters (FZ-RMQ, OOLRI,
    MTRD) and takes the keyword arguments of `tune_mpq_dm`; without trajectories it is
    FZ-RMQ alone. The policy's numbers, None by default:

      tau             a Temporal Delta Cache on top (`tdc`)
      step_threshold  a whole-step cache on top (`step_cache`)

    Args:
      weight_bits: 2 to 4, on average over the output channels.
      activation_bits: 4, 6 or 8, one width for all sites.
      rotation: width of the block Hadamard; not with tuning, whose adapters read the
        activation as it is.
      rank: the rank of the adapters.

    Raises:
      ValueError: another width.
    """
    if activation_bits not in _ROUTES:
        raise ValueError(
            f"activation_bits: expected one of {sorted(_ROUTES)} (there is a route "
            f"for them), found {activation_bits!r}"
        )
    options = MPQDMOptions(
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        rotation=rotation,
        rank=rank,
    )
    route = _ROUTES[activation_bits]
    return Recipe(
        name="mpq-dm-v2",
        description=f"W{weight_bits}A{activation_bits}, residual mixed precision per "
        "output channel (a reconstruction of MPQ-DMv2)",
        weights=ResidualRecipe(weight_bits, rotation=rotation),
        make_policy=partial(_policy, route=route),
        routes=(route, Route.INT8),
        target_bits=float(activation_bits),
        numbers={"tau": None, "step_threshold": None},
        quantizer=partial(_quantize, options),
    )


def _quantize(
    options: MPQDMOptions,
    model: nnx.Module,
    weights: Any,
    *,
    trajectories: Any = None,
    **tuning: Any,
) -> nnx.Module:
    if trajectories is None:
        if tuning:
            raise TypeError(
                f"recipe mpq-dm-v2: expected trajectories with {', '.join(tuning)}"
            )
        return quantize(model, weights)
    memory = tuning.pop("memory", options.memory)
    options = replace(options, memory=memory)
    return tune_mpq_dm(model, trajectories, options, **tuning)[0]


def _policy(
    model: Any, *, route: Route, tau: float | None, step_threshold: float | None
) -> Policy:
    del model
    if tau is not None and step_threshold is not None:
        raise ValueError(
            "recipe mpq-dm-v2: expected one of tau and step_threshold, found both"
        )
    parts = [fixed(route=route)]
    if tau is not None:
        parts.append(tdc(tau))
    if step_threshold is not None:
        parts.append(step_cache(step_threshold))
    return chain(*parts)


__all__ = ["mpq_dm_v2"]
