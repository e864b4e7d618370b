"""OOLRI of MPQ-DMv2 (arXiv 2507.04290): where a low-rank adapter starts.

A reconstruction from the paper's abstract and framework figure. With E = W - Q(W) =
U S V^T, the adapter starts from

    B = U_r S_r^1/2,    A = S_r^1/2 V_r^T

Outside the quantizer, Q(W) + B A, this is the best rank-r correction of the weights
(Eckart-Young); inside, Q(W + B A), where MPQ-DM (v1) has its adapter, it is not, as
the quantizer rounds it away in part.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Placement = Literal["outside", "inside"]
PLACEMENTS = ("outside", "inside")
RANK = 32


class Adapter(NamedTuple):
    """A low-rank update B A of a matrix [..., N, K].

    Attributes:
      down: A, [..., r, K].
      up: B, [..., N, r].
    """

    down: Float[Array, "*batch r k"]
    up: Float[Array, "*batch n r"]

    def matrix(self) -> Float[Array, "*batch n k"]:
        """B A, float32."""
        return jnp.einsum("...nr,...rk->...nk", self.up, self.down, precision="highest")


@partial(jax.jit, static_argnames="rank")
def low_rank(error: Float[Array, "*batch n k"], rank: int = RANK) -> Adapter:
    """The adapter nearest to a matrix, its singular values split evenly.

    Args:
      error: E, any float dtype.
      rank: r, at most the smaller side.

    Raises:
      ValueError: another rank.
    """
    _check_rank(error.shape, rank)
    u, s, v = jnp.linalg.svd(error.astype(jnp.float32), full_matrices=False)
    root = jnp.sqrt(s[..., :rank])
    return Adapter(
        v[..., :rank, :] * root[..., None], u[..., :rank] * root[..., None, :]
    )


def zero_adapter(shape: tuple[int, ...], rank: int = RANK) -> Adapter:
    """An adapter that does nothing, for a matrix of `shape`."""
    _check_rank(shape, rank)
    *lead, rows, columns = shape
    return Adapter(jnp.zeros((*lead, rank, columns)), jnp.zeros((*lead, rows, rank)))


def _check_rank(shape: tuple[int, ...], rank: int) -> None:
    if len(shape) < 2 or not 1 <= rank <= min(shape[-2:]):
        raise ValueError(
            f"rank: expected 1 to the smaller side of a matrix, found {rank} for the "
            f"shape {tuple(shape)}"
        )


__all__ = [
    "PLACEMENTS",
    "RANK",
    "Adapter",
    "Placement",
    "low_rank",
    "zero_adapter",
]
