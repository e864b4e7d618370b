"""What the sampler hands to a block and gets back, the same for every network."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.attention.api import Precision
from sixbit_jax.nn.linear import Linear
from sixbit_jax.nn.site import SiteControl, SiteOptions, SiteStats, run_site


class BlockControl(NamedTuple):
    """One block's slice of the plan, with its own sites only."""

    route: Int[Array, "sites"]
    outlier_limit: Float[Array, ""]
    int8_scores: Bool[Array, ""]


class BlockStats(NamedTuple):
    """What the sites of one block measured (see `policies.Stats`)."""

    outlier: Float[Array, "sites"]
    route: Int[Array, "sites"]
    error: Float[Array, "sites"]


class SiteRunner:
    """Runs the sites of one block by its plan and keeps what they measured.

    Lives for one trace of a block's forward pass.
    """

    def __init__(
        self,
        sites: tuple[str, ...],
        control: BlockControl | None,
        options: SiteOptions,
    ):
        """Begins a block.

        Args:
          sites: names of its sites, in the order of the plan.
          control: its slice of the plan, or None for full precision.
          options: which branches the program contains.
        """
        self._sites, self._control, self._options = sites, control, options
        self._measured: dict[str, SiteStats] = {}

    def __call__(
        self, name: str, x: Array, *linears: Linear, **fused
    ) -> tuple[Array, ...]:
        """Runs a site; `fused` are the keyword arguments of `run_site`.

        Raises:
          ValueError: the block has no such site, or has run it.
        """
        if name not in self._sites or name in self._measured:
            raise ValueError(
                f"site {name!r}: expected each of {', '.join(self._sites)} once, found "
                f"it after {', '.join(self._measured) or 'none'}"
            )
        chosen = None
        if self._control is not None:
            route = self._control.route[self._sites.index(name)]
            chosen = SiteControl(route, self._control.outlier_limit)
        outputs, measured = run_site(x, linears, chosen, self._options, **fused)
        self._measured[name] = measured
        return outputs

    @property
    def scores(self) -> Precision | Bool[Array, ""]:
        """Precision of attention: fixed, or traced: whether scores are INT8."""
        if self._options.attention != "plan":
            return self._options.attention
        return "bf16" if self._control is None else self._control.int8_scores

    def stats(self) -> BlockStats:
        """The stats of all sites, in the order of the plan.

        Raises:
          ValueError: a site has not run.
        """
        missing = [name for name in self._sites if name not in self._measured]
        if missing:
            raise ValueError(
                f"block: expected all of its sites to run, found none of "
                f"{', '.join(missing)}"
            )
        columns = zip(*(self._measured[name] for name in self._sites), strict=True)
        return BlockStats(*(jnp.stack(column) for column in columns))
