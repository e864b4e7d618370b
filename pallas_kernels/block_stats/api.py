"""Statistics of a computed block, and the output of a skipped one."""

from jaxtyping import Array, Float

from pallas_kernels.block_stats import mosaic_gpu, reference, triton
from pallas_kernels.block_stats.cache import CachedDelta, CacheFormat
from pallas_kernels.block_stats.reference import BlockStats, apply_delta
from pallas_kernels.dispatch import Implementation, dispatch, needs_hopper
from pallas_kernels.triton_backend.calls import needs_triton

__all__ = ["apply_delta", "block_stats"]


def block_stats(
    x: Float[Array, "*batch m k"],
    y: Float[Array, "*batch m k"],
    old_delta: CachedDelta | None = None,
    *,
    cache_format: CacheFormat = "bf16",
    implementation: str | None = None,
) -> BlockStats:
    """gamma, the new delta and its change, in one pass over X, Y and the old delta.

        delta = Y - X
        gamma = sum|delta| / sum|X|
        delta_change = sum|delta - old| / sum|old|

    Args:
      x: block input [..., M, K].
      y: block output, same shape.
      old_delta: delta of the last computed step, in any format; None if there is none.
      cache_format: how the new delta is stored: "bf16", "int8" (one scale per token) or
        "nvfp4" (the second level per token).
      implementation: "mosaic_gpu" (Hopper), "triton" (any GPU since Ampere),
        "reference", or None for the first that can run here.

    Returns:
      gamma and delta_change float32 [...], and the stored delta.

    Raises:
      ValueError: shapes that differ, an unknown format.
      NotImplementedError: the named implementation cannot run these inputs.
    """
    if x.shape != y.shape or x.ndim < 2:
        raise ValueError(
            f"x and y must be [..., M, K] of one shape, found {x.shape} and {y.shape}"
        )

    def runs(module):
        return lambda: module.block_stats(x, y, old_delta, cache_format=cache_format)

    run = [
        Implementation("mosaic_gpu", runs(mosaic_gpu), needs_hopper),
        Implementation("triton", runs(triton), needs_triton),
        Implementation("reference", runs(reference), definition=True),
    ]
    return BlockStats(*dispatch("block_stats", run, implementation))
