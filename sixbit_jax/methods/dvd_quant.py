"""DVD-Quant (arXiv 2505.18663) as a recipe."""

from functools import partial
from typing import Any

from sixbit_jax.methods.recipe import Recipe
from sixbit_jax.policies import Policy, chain, delta_gbs, step_cache
from sixbit_jax.quantizers.uniform import UniformRecipe
from sixbit_jax.routes import Route


def dvd_quant(
    *,
    bits: int = 4,
    rotation: int = 128,
    arq_block: int = 128,
    per_channel: bool = False,
) -> Recipe:
    """Data-free: refined uniform weights, ARQ activations, delta-guided bit switching.

    Weights W H on grids of BGR; activations rotated, divided by live scales and put on
    4- or 8-bit grids per token (ARQ); 4 bits while the guided output has changed by
    less than delta since the last 8-bit step. The policy's numbers:

      delta           limit of the accumulated change (0.09, the paper's); `sixbit
                      calibrate --recipe dvd-quant` finds it for a mean width, since
                      the change per step depends on the model and the step count
      step_threshold  of a whole-step cache on top (the paper: TeaCache); None

    Args:
      bits: the bits of the weights, 2 to 8.
      rotation: width of the block Hadamard; the kernels know 128 and 0.
      arq_block: channels that share a live scale. A block of the rotation's width is
        best and cheapest: the rotation levels what is inside it.
      per_channel: ARQ's definition, one scale per channel, which is fake-quantized.
    """
    routes = (Route.ARQ4, Route.ARQ8)
    if per_channel:
        routes = (Route.ARQ4_CHANNEL, Route.ARQ8_CHANNEL)

    return Recipe(
        name="dvd-quant",
        description=f"W{bits} on refined grids, ARQ activations of 4 and 8 bits by "
        "delta-guided switching",
        weights=UniformRecipe(bits, rotation=rotation, grid="bgr"),
        make_policy=partial(_policy, routes=routes),
        routes=routes,
        numbers={"delta": 0.09, "step_threshold": None},
        arq_block=arq_block,
    )


def _policy(
    model: Any,
    *,
    routes: tuple[Route, Route],
    delta: float,
    step_threshold: float | None,
) -> Policy:
    del model
    switching = delta_gbs(delta, low=routes[0], high=routes[1])
    if step_threshold is None:
        return switching
    return chain(switching, step_cache(step_threshold))
