"""The rotation that weights carry offline and activations get online."""

from jaxtyping import Array, Float

from pallas_kernels.numerics.hadamard import block_hadamard


def rotate(x: Float[Array, "*batch k"], rotation: int) -> Float[Array, "*batch k"]:
    """Block Hadamard of `rotation` channels along the last axis; 0 returns x.

    Its own inverse. With both sides rotated, (X H)(W H)^T = X W^T.

    Raises:
      ValueError: rotation is neither 0 nor a power of two that divides K.
    """
    return block_hadamard(x, rotation) if rotation else x
