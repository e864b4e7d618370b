"""The definition: sums of the distance to a pivot and of its square, per channel."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class ChannelMoments(NamedTuple):
    """Per sample and channel.

    Attributes:
      total: sum of x - pivot, float32 [batch, C].
      squares: sum of (x - pivot)^2, float32 [batch, C].
    """

    total: Float[Array, "batch C"]
    squares: Float[Array, "batch C"]


def channel_moments(
    x: Float[Array, "batch pixels C"], pivot: Float[Array, "batch C"]
) -> ChannelMoments:
    """Sums over all pixels, in float32.

    Args:
      x: activations of any float dtype.
      pivot: near the mean of each channel, so that squares do not cancel.
    """
    distance = x.astype(jnp.float32) - pivot[:, None]
    return ChannelMoments(distance.sum(1), jnp.square(distance).sum(1))
