"""Sites whose weights are `CorrectedArray`s, on any route."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from pallas_kernels.numerics import int8, nvfp4
from sixbit_jax.formats.corrected import CorrectedArray
from sixbit_jax.nn.axes import NO_AXES, Axes
from sixbit_jax.nn.linear import Affine
from sixbit_jax.nn.token_levels import token_levels
from sixbit_jax.routes import Route


def has_correction(affines: Sequence[Affine]) -> bool:
    """Whether the weight of any linear has one."""
    return any(isinstance(weight, CorrectedArray) for weight, _ in affines)


def corrected(work: Any, x: Array, *, route: Route) -> tuple[Array, ...]:
    """The route's products of the weights inside, plus their corrections.

    The update is not in the kernels' epilogue: the gated residual is applied after it.

    Args:
      work: `arithmetic.Work` of the site.
      x: the site's input.
      route: what the weights inside and the activation are multiplied with.
    """
    plain = [
        Affine(weight.weight if isinstance(weight, CorrectedArray) else weight, bias)
        for weight, bias in work.affines
    ]
    outputs = replace(work, affines=plain, residual=None).route(route)(x)
    live = work.front(x)
    quantized = as_quantized(live, route, work.axes)
    made = []
    for y, (weight, _) in zip(outputs, work.affines, strict=True):
        if isinstance(weight, CorrectedArray):
            activation = live if weight.live else quantized
            y = (y.astype(jnp.float32) + weight.correction(activation)).astype(x.dtype)
        made.append(y if work.residual is None else work.residual(y))
    return tuple(y.astype(x.dtype) for y in made)


def as_quantized(x: Array, route: Route, axes: Axes = NO_AXES) -> Array:
    """The activation with the values that a route multiplies.

    The ARQ routes have scales of their own in a rotated space: corrections, which are
    never rotated, read the live activation there.
    """
    values = x.astype(jnp.float32)
    if route in (Route.INT4, Route.INT6):
        levels, scales = token_levels(values, route.bits)
        return (levels.astype(jnp.float32) * scales[..., None]).astype(x.dtype)
    if route == Route.INT8:
        levels, scales = int8.quantize(values)
        return (levels.astype(jnp.float32) * scales[..., None]).astype(x.dtype)
    if route == Route.NVFP4:
        scale = axes.largest_of_tokens(nvfp4.tensor_scale_of(values))
        return nvfp4.fake_quantize(values, scale).astype(x.dtype)
    return x


__all__ = ["as_quantized", "corrected", "has_correction"]
