"""What the default device is fast at."""

from pallas_kernels.dispatch import needs_block_scaled_mma
from sixbit_jax.routes import Route


def fast_stable_route() -> Route:
    """The route to run stable sites on when speed counts.

    NVFP4 where the tensor cores multiply it (Blackwell). INT8 elsewhere: Hopper
    emulates NVFP4 exactly, at the speed of bf16, so that there it buys no time.
    """
    try:
        needs_block_scaled_mma()
    except NotImplementedError:
        return Route.INT8
    return Route.NVFP4


__all__ = ["fast_stable_route"]
