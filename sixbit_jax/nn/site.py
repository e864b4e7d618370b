"""A site: one activation tensor, the linears it feeds, and the route they take.

The route is a traced value; `lax.switch` picks among the routes that the policy may
use, all from the one stored NVFP4 weight (DESIGN section 5). The branches hold no
loops, so that XLA captures them into a CUDA graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sixbit_jax.formats import Int8Array, NVFP4Array, rotate
from sixbit_jax.nn.fusion import Front, GatedResidual, Identity
from sixbit_jax.nn.linear import Linear
from sixbit_jax.routes import Route


class SiteControl(NamedTuple):
    """The plan of one site: traced scalars."""

    route: Int[Array, ""]
    outlier_limit: Float[Array, ""]


class SiteStats(NamedTuple):
    """What one site measured: traced scalars (see `policies.Stats`)."""

    outlier: Float[Array, ""]
    route: Int[Array, ""]
    error: Float[Array, ""]


@dataclass(frozen=True)
class SiteOptions:
    """What the compiled program contains; static.

    Attributes:
      routes: the routes that a plan may hold.
      outlier_rule: whether a site may fall back to BF16 by its live activation.
      outlier_stats: whether max|x| / mean|x| of every activation is measured.
      errors: whether the NVFP4 error of every site is measured (calibration only:
        runs each site's linears two more times).
    """

    routes: tuple[Route, ...] = (Route.BF16,)
    outlier_rule: bool = False
    outlier_stats: bool = False
    errors: bool = False

    @property
    def branches(self) -> tuple[Route, ...]:
        """The routes that can run: those of the plan, and BF16 for the rule."""
        extra = {Route.BF16} if self.outlier_rule else set()
        return tuple(sorted(set(self.routes) | extra))


IDENTITY = Identity()


def _rotate(x: Array, weight: NVFP4Array) -> Array:
    return rotate(x, weight.rotation) if weight.rotation else x


def _apply_bf16(x: Array, linear: Linear) -> Array:
    return linear(x)


def _apply_nvfp4(x: Array, linear: Linear) -> Array:
    """Both sides NVFP4; the products are exact in bf16 (DESIGN section 5)."""
    weight: NVFP4Array = linear.weight.get_value()
    rotated = _rotate(x, weight)
    quantized = NVFP4Array.quantize(rotated.reshape(-1, x.shape[-1]))
    x = quantized.dequantize(jnp.float32).reshape(x.shape)
    return _float_product(x, weight.dequantize(jnp.float32), linear)


def _apply_int8(x: Array, linear: Linear) -> Array:
    """Per-token INT8 activation, NVFP4 weight expanded to per-channel INT8."""
    weight: NVFP4Array = linear.weight.get_value()
    activation = Int8Array.quantize(_rotate(x, weight))
    expanded = Int8Array.quantize(weight.dequantize(jnp.float32))
    y = jnp.einsum(
        "...k,nk->...n",
        activation.values.astype(jnp.float32),
        expanded.values.astype(jnp.float32),
    )
    y = y * activation.scales[..., None] * expanded.scales
    return _add_bias(y, linear)


def _float_product(x: Array, matrix: Array, linear: Linear) -> Array:
    return _add_bias(jnp.einsum("...k,nk->...n", x, matrix), linear)


def _add_bias(y: Array, linear: Linear) -> Array:
    bias = linear.bias_array()
    return y if bias is None else y + bias.astype(jnp.float32)


_APPLY = {
    Route.NVFP4: _apply_nvfp4,
    Route.INT8: _apply_int8,
    Route.BF16: _apply_bf16,
}


def outlier_ratio(x: Float[Array, "*any"]) -> Float[Array, ""]:
    """max|x| / mean|x|, the signal of Purified Delta Refresh."""
    magnitude = jnp.abs(x.astype(jnp.float32))
    return magnitude.max() / jnp.maximum(magnitude.mean(), 1e-30)


def relative_l1(value: Array, reference: Array) -> Float[Array, ""]:
    """sum|value - reference| / sum|reference| in float32."""
    value, reference = value.astype(jnp.float32), reference.astype(jnp.float32)
    return jnp.abs(value - reference).sum() / jnp.maximum(
        jnp.abs(reference).sum(), 1e-30
    )


def _nvfp4_error(x: Array, linears: Sequence[Linear]) -> Array:
    exact = jnp.concatenate([_apply_bf16(x, linear) for linear in linears], -1)
    low = jnp.concatenate([_apply_nvfp4(x, linear) for linear in linears], -1)
    return relative_l1(low, exact)


def run_site(
    x: Float[Array, "batch tokens K"],
    linears: Sequence[Linear],
    control: SiteControl | None,
    options: SiteOptions,
    *,
    front: Front = IDENTITY,
    residual: GatedResidual | None = None,
) -> tuple[tuple[Float[Array, "batch tokens N"], ...], SiteStats]:
    """Runs the linears of one site on the route of the plan.

    Args:
      x: what the front reads: the residual stream, or the site's activation itself.
      linears: the layers that read the activation; all weights NVFP4 where a route
        other than BF16 can be taken.
      control: the plan of this site, or None for BF16.
      options: which branches the program contains.
      front: makes the live activation, before rotation and quantization.
      residual: epilogue of the (single) linear.

    Returns:
      One output per linear, in the dtype of x, and the stats.
    """
    zero = jnp.zeros((), jnp.float32)
    measure = options.outlier_rule or options.outlier_stats
    outlier = outlier_ratio(front(x)) if measure else zero
    branches, route = options.branches, jnp.int32(Route.BF16)
    if control is None:
        branches = (Route.BF16,)
    else:
        route = control.route
        if options.outlier_rule:
            route = jnp.where(outlier > control.outlier_limit, Route.BF16, route)

    def branch(kind: Route):
        def run(x):
            activation = front(x)
            outputs = [_APPLY[kind](activation, linear) for linear in linears]
            if residual is not None:
                outputs = [residual(y) for y in outputs]
            return tuple(y.astype(x.dtype) for y in outputs)

        return run

    if len(branches) == 1:
        outputs = branch(branches[0])(x)
    else:
        index = sum(route > kind for kind in branches[:-1])
        outputs = jax.lax.switch(index, [branch(kind) for kind in branches], x)
    error = _nvfp4_error(front(x), linears) if options.errors else zero * jnp.nan
    return outputs, SiteStats(outlier, route, error)
