"""Sums of large channels-last activations, in one pass."""

from jaxtyping import Array, Float

from pallas_kernels.dispatch import Implementation, dispatch, needs_hopper
from pallas_kernels.group_norm import mosaic_gpu, reference
from pallas_kernels.group_norm.reference import ChannelMoments

__all__ = ["channel_moments"]


def channel_moments(
    x: Float[Array, "batch pixels C"],
    pivot: Float[Array, "batch C"],
    *,
    implementation: str | None = None,
) -> ChannelMoments:
    """Sums of x - pivot and of its square over the pixels, per sample and channel.

    Args:
      x: activations.
      pivot: near the mean of each channel, float32.
      implementation: "mosaic_gpu" (Hopper, bfloat16), "reference", or None for the
        first that can run here.

    Returns:
      Both sums, float32 [batch, C].

    Raises:
      ValueError: shapes that do not fit.
      NotImplementedError: the named implementation cannot run these inputs.
    """
    if x.ndim != 3 or pivot.shape != (x.shape[0], x.shape[2]):
        raise ValueError(
            f"expected x [batch, pixels, C] and pivot [batch, C], found "
            f"{list(x.shape)} and {list(pivot.shape)}"
        )
    run = [
        Implementation(
            "mosaic_gpu", lambda: mosaic_gpu.channel_moments(x, pivot), needs_hopper
        ),
        Implementation("reference", lambda: reference.channel_moments(x, pivot)),
    ]
    return dispatch("channel_moments", run, implementation)
