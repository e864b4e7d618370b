"""What the sampler hands to a block and gets back, the same for every network."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class BlockControl(NamedTuple):
    """One block's slice of the plan."""

    route: Int[Array, "sites"]
    outlier_limit: Float[Array, ""]


class BlockStats(NamedTuple):
    """What the sites of one block measured (see `policies.Stats`)."""

    outlier: Float[Array, "sites"]
    route: Int[Array, "sites"]
    error: Float[Array, "sites"]
