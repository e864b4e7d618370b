"""Uniform asymmetric grids, one per row of a matrix [..., N, K].

q = clamp(round(w / s) + z, 0, 2^b - 1)        w_hat = s (q - z)
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, UInt8

MIN_BITS, MAX_BITS = 2, 8


class UniformGrid(NamedTuple):
    """The grid of each row.

    Attributes:
      scale: s, positive.
      zero_point: z, a whole number within 0 .. 2^b - 1.
    """

    scale: Float32[Array, "*batch n"]
    zero_point: Float32[Array, "*batch n"]


def check_bits(bits: int) -> None:
    """Refuses widths that no uniform grid has.

    Raises:
      ValueError: bits is not a whole number from 2 to 8.
    """
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise ValueError(f"a uniform grid needs whole bits, found {bits!r}")
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(
            f"a uniform grid has {MIN_BITS} to {MAX_BITS} bits, found {bits}"
        )


def checked_rows(w: jax.Array, bits: int) -> jax.Array:
    """w in float32.

    Raises:
      ValueError: bits outside 2 to 8, fewer than two axes, K = 0.
    """
    check_bits(bits)
    if w.ndim < 2 or not w.shape[-1]:
        raise ValueError(
            f"a uniform grid needs an array [..., N, K] with K > 0, found shape "
            f"{tuple(w.shape)}"
        )
    return w.astype(jnp.float32)


def grid_of_range(
    low: Float[Array, "*batch n"], high: Float[Array, "*batch n"], bits: int
) -> UniformGrid:
    """The grid whose ends are min(low, 0) and max(high, 0)."""
    # Zero is always inside: z must be one of the codes, and 0 must stay 0.
    low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    scale = jnp.where(scale == 0, 1.0, scale)
    return UniformGrid(scale, jnp.round(-low / scale))


@partial(jax.jit, static_argnames="bits")
def minmax_grid(w: Float[Array, "*batch n k"], bits: int) -> UniformGrid:
    """The grid from min(w, 0) to max(w, 0) of each row.

    Args:
      w: float [..., N, K].
      bits: 2 to 8.

    Raises:
      ValueError: other bits, fewer than two axes, K = 0.
    """
    w = checked_rows(w, bits)
    return grid_of_range(w.min(-1), w.max(-1), bits)


def nearest_levels(
    w: Float[Array, "*batch n k"], grid: UniformGrid, bits: int
) -> Float32[Array, "*batch n k"]:
    """q - z, whole numbers."""
    scale, zero = grid.scale[..., None], grid.zero_point[..., None]
    return jnp.clip(jnp.round(w / scale), -zero, 2**bits - 1 - zero)


@partial(jax.jit, static_argnames="bits")
def encode_uniform(
    w: Float[Array, "*batch n k"], grid: UniformGrid, bits: int
) -> UInt8[Array, "*batch n k"]:
    """Codes q = clamp(round(w / s) + z, 0, 2^b - 1).

    Raises:
      ValueError: bits outside 2 to 8, fewer than two axes, K = 0.
    """
    w = checked_rows(w, bits)
    levels = nearest_levels(w, grid, bits) + grid.zero_point[..., None]
    return levels.astype(jnp.uint8)


def decode_uniform(
    codes: UInt8[Array, "*batch n k"], grid: UniformGrid
) -> Float32[Array, "*batch n k"]:
    """Values s (q - z)."""
    levels = codes.astype(jnp.float32) - grid.zero_point[..., None]
    return levels * grid.scale[..., None]


def pack_codes(
    codes: UInt8[Array, "*batch k"], bits: int
) -> UInt8[Array, "*batch packed"]:
    """Codes of 2 to 8 bits without gaps: one plane of K/8 bytes per bit.

    Bit i of byte j of plane p is bit p of code 8 j + i, so that every width takes
    K bits / 8 bytes and the same few shifts.

    Raises:
      ValueError: K is not a multiple of 8, or bits outside 2 to 8.
    """
    check_bits(bits)
    if codes.shape[-1] % 8:
        raise ValueError(
            f"packed codes need K to be a multiple of 8, found shape "
            f"{tuple(codes.shape)}"
        )
    position = jnp.arange(8, dtype=jnp.uint8)
    plane = jnp.arange(bits, dtype=jnp.uint8)[:, None, None]
    grouped = codes.reshape(*codes.shape[:-1], 1, -1, 8)
    single = ((grouped >> plane) & 1) << position
    return single.sum(-1, dtype=jnp.uint8).reshape(*codes.shape[:-1], -1)


def unpack_codes(
    packed: UInt8[Array, "*batch packed"], bits: int
) -> UInt8[Array, "*batch k"]:
    """The inverse of `pack_codes`."""
    position = jnp.arange(8, dtype=jnp.uint8)
    plane = jnp.arange(bits, dtype=jnp.uint8)[:, None, None]
    planes = packed.reshape(*packed.shape[:-1], bits, -1, 1)
    single = ((planes >> position) & 1) << plane
    return single.sum(-3, dtype=jnp.uint8).reshape(*packed.shape[:-1], -1)
