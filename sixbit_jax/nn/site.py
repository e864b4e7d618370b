"""A site: one activation tensor, the linears it feeds, and the route they take.

The route is a traced value; `lax.switch` picks among the routes that the policy may
use, all from the one stored weight. The branches hold no
loops, so that XLA captures them into a CUDA graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.attention.api import Precision
from sixbit_jax.measured import NO_LIMIT, NOT_MEASURED
from sixbit_jax.nn.arithmetic import Work
from sixbit_jax.nn.axes import NO_AXES, Axes
from sixbit_jax.nn.fusion import Front, GatedResidual, Identity
from sixbit_jax.nn.linear import Linear
from sixbit_jax.nn.varying import vary, varying_axes
from sixbit_jax.routes import Route
from sixbit_jax.sparsity import SparseWay


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
      kernels: take the fastest implementation of every op (GPU kernels where they
        can run); otherwise the plain definitions, which can be differentiated and
        vectorized.
      attention: "bf16", "int8" for quantized scores, or "plan": each block by its plan.
      arq_block: channels that share a live scale on the routes ARQ4 and ARQ8.
      sparse: how blocks of keys are chosen where a block's plan makes self-attention
        sparse; None: it never does.
      axes: what is split over which axes of a mesh.
    """

    routes: tuple[Route, ...] = (Route.BF16,)
    outlier_rule: bool = False
    outlier_stats: bool = False
    errors: bool = False
    kernels: bool = False
    attention: Precision | Literal["plan"] = "bf16"
    arq_block: int = 128
    sparse: SparseWay | None = None
    axes: Axes = NO_AXES

    @property
    def branches(self) -> tuple[Route, ...]:
        """The routes that can run: those of the plan, and BF16 for the rule."""
        extra = {Route.BF16} if self.outlier_rule else set()
        return tuple(sorted(set(self.routes) | extra))

    @property
    def implementation(self) -> str | None:
        """What the ops are asked for."""
        return None if self.kernels else "reference"


IDENTITY = Identity()


def outlier_ratio(x: Float[Array, "*any"], axes: Axes = NO_AXES) -> Float[Array, ""]:
    """max|x| / mean|x|, the signal of Purified Delta Refresh.

    Args:
      x: any array; [batch, tokens, K] where rows are split.
      axes: over which they are.
    """
    magnitude = jnp.abs(x.astype(jnp.float32))
    if not axes.rows:
        return magnitude.max() / jnp.maximum(magnitude.mean(), 1e-30)
    total = axes.total(axes.sum_of_tokens(magnitude.sum(-1)))
    mean = total / (axes.num_rows(x) * x.shape[-1])
    return axes.largest(magnitude.max()) / jnp.maximum(mean, 1e-30)


def relative_l1(
    value: Array, reference: Array, axes: Axes = NO_AXES
) -> Float[Array, ""]:
    """sum|value - reference| / sum|reference| in float32.

    Args:
      value, reference: of one shape; [batch, tokens, K] where rows are split.
      axes: over which they are.
    """
    value, reference = value.astype(jnp.float32), reference.astype(jnp.float32)
    change, base = jnp.abs(value - reference), jnp.abs(reference)
    if axes.rows:
        rows = jnp.stack([change.sum(-1), base.sum(-1)], -1)
        found = axes.total(axes.sum_of_tokens(rows))
        return found[0] / jnp.maximum(found[1], 1e-30)
    return change.sum() / jnp.maximum(base.sum(), 1e-30)


def _nvfp4_error(work: Work, x: Array) -> Array:
    outputs = replace(work, residual=None)
    exact, low = outputs.route(Route.BF16)(x), outputs.route(Route.NVFP4)(x)
    low_outputs, exact_outputs = (jnp.concatenate(part, -1) for part in (low, exact))
    return relative_l1(low_outputs, exact_outputs, work.axes)


def _outlier(x: Array, front: Front, control: SiteControl, options: SiteOptions):
    """The live statistic, where anybody asks for it."""
    if options.outlier_stats:
        return outlier_ratio(front(x), options.axes)
    if not options.outlier_rule:
        return jnp.zeros((), jnp.float32)
    # The rule holds in few blocks: elsewhere the pass over the activation is saved.
    axes = varying_axes(x, front, control)
    return jax.lax.cond(
        control.outlier_limit < NO_LIMIT,
        lambda x: vary(outlier_ratio(front(x), options.axes), axes),
        lambda x: vary(jnp.zeros((), jnp.float32), axes),
        x,
    )


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
      linears: the layers that read the activation; all weights stored (`StoredWeight`)
        where a route other than BF16 can be taken.
      control: the plan of this site, or None for BF16.
      options: which branches the program contains.
      front: makes the live activation, before rotation and quantization.
      residual: epilogue of the (single) linear.

    Returns:
      One output per linear, in the dtype of x, and the stats.
    """
    affines = [linear.affine() for linear in linears]
    work = Work(
        affines,
        front,
        residual,
        options.implementation,
        options.arq_block,
        axes=options.axes,
    )
    nothing = jnp.full((), NOT_MEASURED, jnp.float32)
    if control is None:
        stats = SiteStats(jnp.zeros(()), jnp.int32(Route.BF16), nothing)
        return work.bf16(x), stats
    outlier, route = _outlier(x, front, control, options), control.route
    if options.outlier_rule:
        route = jnp.where(outlier > control.outlier_limit, Route.BF16, route)
    branches = [work.route(kind) for kind in options.branches]
    if len(branches) == 1:
        outputs = branches[0](x)
    else:
        index = sum(route > kind for kind in options.branches[:-1])
        outputs = jax.lax.switch(index, branches, x)
    error = _nvfp4_error(work, x) if options.errors else nothing
    return outputs, SiteStats(outlier, route.astype(jnp.int32), error)
