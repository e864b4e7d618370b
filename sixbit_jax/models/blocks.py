"""What the sampler hands to a block and gets back, the same for every network."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.attention.api import Precision
from sixbit_jax.nn.linear import Linear
from sixbit_jax.nn.site import SiteControl, SiteOptions, SiteStats, run_site


class BlockControl(NamedTuple):
    """One block's slice of the plan."""

    route: Int[Array, "sites"]
    outlier_limit: Float[Array, ""]
    int8_scores: Bool[Array, ""]


class BlockStats(NamedTuple):
    """What the sites of one block measured (see `policies.Stats`)."""

    outlier: Float[Array, "sites"]
    route: Int[Array, "sites"]
    error: Float[Array, "sites"]


class SiteRunner:
    """Runs the sites of one block by its plan, in order, and keeps what they measured.

    Lives for one trace of a block's forward pass.
    """

    def __init__(self, control: BlockControl | None, options: SiteOptions):
        self._control, self._options = control, options
        self._measured: list[SiteStats] = []

    def __call__(self, x: Array, *linears: Linear, **fused) -> tuple[Array, ...]:
        """The next site; `fused` are the keyword arguments of `run_site`."""
        chosen = None
        if self._control is not None:
            route = self._control.route[len(self._measured)]
            chosen = SiteControl(route, self._control.outlier_limit)
        outputs, measured = run_site(x, linears, chosen, self._options, **fused)
        self._measured.append(measured)
        return outputs

    @property
    def scores(self) -> Precision | Bool[Array, ""]:
        """Precision of attention: fixed, or traced: whether scores are INT8."""
        if self._options.attention != "plan":
            return self._options.attention
        return "bf16" if self._control is None else self._control.int8_scores

    def stats(self) -> BlockStats:
        """The stats of all sites."""
        columns = zip(*self._measured, strict=True)
        return BlockStats(*(jnp.stack(column) for column in columns))
