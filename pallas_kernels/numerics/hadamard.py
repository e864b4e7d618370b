"""Orthonormal block Hadamard rotation along the last axis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

DEFAULT_BLOCK = 128


@functools.cache
def sylvester(size: int) -> np.ndarray:
    """The Sylvester-Hadamard matrix of +-1, int8 [size, size]: symmetric.

    Raises:
      ValueError: size is not a power of two.
    """
    if size < 1 or size & (size - 1):
        raise ValueError(f"a Hadamard size must be a power of two, found {size}")
    matrix = np.ones((1, 1), np.int8)
    while matrix.shape[0] < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix.setflags(write=False)
    return matrix


def block_hadamard(
    x: Float[Array, "*batch k"], block: int = DEFAULT_BLOCK
) -> Float[Array, "*batch k"]:
    """Rotates every `block` consecutive channels by H / sqrt(block).

    H is symmetric and H H = I, so the same call undoes it, and
    (X H)(W H)^T = X W^T when both sides are rotated.

    Args:
      x: any float; computed in float32, returned in its own dtype.
      block: a power of two that divides K.

    Raises:
      ValueError: block is not a power of two or does not divide K.
    """
    matrix = sylvester(block)
    if x.shape[-1] % block:
        raise ValueError(
            f"a block Hadamard of {block} needs K to be a multiple of it, found shape "
            f"{x.shape}"
        )
    # +-1 first and the norm afterwards: the matrix stays exact in every type.
    grouped = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, block)
    rotated = jax.lax.dot_general(
        grouped,
        jnp.asarray(matrix, jnp.float32),
        (((grouped.ndim - 1,), (0,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
    )
    return (rotated * float(block) ** -0.5).reshape(x.shape).astype(x.dtype)
