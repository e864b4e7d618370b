"""FZ-RMQ of MPQ-DMv2 (arXiv 2507.04290): residual mixed precision at 2 to 4 bits.

A reconstruction from the paper's abstract, its framework figure and the code of its
predecessor MPQ-DM (v1); text and code of v2 were not available.

Every output channel gets an (n - 1)-bit uniform base plus 0, 1 or 2 binary residual
branches (unsalient, normal, salient), n bits on average:

    w_hat = s (q - z) + sum_k (mu_k + a_k sign(.))

Salience is the kurtosis of the channel; as many channels are salient as are unsalient,
and their share is the one of 0, 10, .. 50% with the least error. [ours] Base and
branches are fitted jointly (`residual_fit`), which contains the n-bit uniform grid as
a special case and starts from it; s z and the mu_k are one number per channel.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from sixbit_jax.formats import rotate
from sixbit_jax.formats.residual import (
    MAX_BITS,
    MIN_BITS,
    ResidualArray,
    pack_bits,
)
from sixbit_jax.quantizers.residual_fit import (
    METHODS,
    Levels,
    Method,
    decode,
    fit_levels,
    nearest_codes,
)

Salience = Literal["kurtosis", "error"]
SALIENCE = ("kurtosis", "error")
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


class Selection(NamedTuple):
    """Which channels are salient.

    Attributes:
      position: rank of each channel, 0 the most salient.
      num_salient: channels with two branches, and channels with none.
      error: squared error of the matrix under each share that was tried.
    """

    position: Int32[Array, "*batch n"]
    num_salient: Int32[Array, "*batch"]
    error: Float32[Array, "*batch shares"]


def kurtosis(w: Float[Array, "*batch n k"]) -> Float32[Array, "*batch n"]:
    """Fourth central moment over the squared variance of each row; 0 if constant."""
    w = w.astype(jnp.float32)
    # An exact power of two keeps the fourth power in range.
    _, exponent = jnp.frexp(jnp.maximum(jnp.abs(w).max(-1, keepdims=True), 1e-30))
    centred = jnp.ldexp(w, -exponent)
    centred = centred - centred.mean(-1, keepdims=True)
    squares = centred * centred
    variance = squares.mean(-1)
    fourth = (squares * squares).mean(-1)
    safe = jnp.where(variance == 0, 1.0, variance)
    return jnp.where(variance == 0, 0.0, fourth / safe**2)


def select(
    salience: Float[Array, "*batch n"],
    errors: Float[Array, "*batch n 3"],
    shares: Sequence[float] = SHARES,
) -> Selection:
    """Ranks the channels and takes the share of least error.

    Args:
      salience: of each channel, the larger the more salient.
      errors: squared error of each channel with 0, 1 and 2 branches.
      shares: of salient channels to try, each 0 to 0.5.
    """
    rows = salience.shape[-1]
    order = jnp.argsort(-salience, -1)
    position = jnp.argsort(order, -1).astype(jnp.int32)
    ranked = jnp.take_along_axis(errors, order[..., None], -2)
    counts = jnp.asarray([int(share * rows) for share in shares], jnp.int32)
    rank, count = jnp.arange(rows), counts[:, None]
    two, none = rank < count, rank >= rows - count
    chosen = jnp.where(none, 0, jnp.where(two, 2, 1))
    kinds = (chosen[..., None] == jnp.arange(3)).astype(errors.dtype)
    total = jnp.einsum("...nc,snc->...s", ranked, kinds, precision="highest")
    return Selection(position, counts[jnp.argmin(total, -1)], total)


def _output_errors(
    w: Array, levels: Levels, base_bits: int, inputs: Array
) -> Float32[Array, "kinds *batch n"]:
    """Squared error of the output of each channel with 0, 1 and 2 branches."""

    def one_kind(levels: Levels) -> Array:
        codes = nearest_codes(w, levels, base_bits=base_bits)
        difference = w - decode(codes, levels, base_bits=base_bits)
        output = jnp.einsum(
            "...mk,...nk->...nm", inputs, difference, precision="highest"
        )
        return (output * output).sum(-1)

    return jax.lax.map(one_kind, levels)


@partial(jax.jit, static_argnames=("bits", "method", "salience", "shares"))
def _fitted(
    w: Array,
    ordered: Array,
    inputs: Array | None,
    bits: int,
    method: Method,
    salience: Salience,
    shares: tuple[float, ...],
) -> tuple[ResidualArray, Selection]:
    levels, error = fit_levels(w, ordered, base_bits=bits - 1, method=method)
    if inputs is not None:
        error = _output_errors(w, levels, bits - 1, inputs)
    by = kurtosis(w) if salience == "kurtosis" else error[0] - error[2]
    chosen = select(by, jnp.moveaxis(error, 0, -1), shares)
    return _stored(w, levels, chosen, bits), chosen


def _stored(w: Array, fitted: Levels, chosen: Selection, bits: int) -> ResidualArray:
    """Packs the rows; `fitted` has a leading axis of 0, 1 and 2 branches."""
    rows = w.shape[-2]
    salient, position = chosen.num_salient[..., None], chosen.position
    branches = (position < rows - salient).astype(jnp.int32) + (position < salient)
    levels = jax.tree.map(
        lambda part: jnp.take_along_axis(part, branches[None], 0)[0], fitted
    )
    code = nearest_codes(w, levels, base_bits=bits - 1)
    base = jnp.stack([pack_bits((code >> i & 1) == 1) for i in range(bits - 1)], -3)
    # The row at position p has its first branch in pool row p, its second in row
    # N - salient + p: the pool row r belongs to the row at position r, or, behind the
    # first branches, to the one at r - (N - salient).
    rank = jnp.arange(rows)
    behind = rank >= rows - salient
    at = jnp.where(behind, rank - (rows - salient), rank)
    order = jnp.argsort(position, -1)
    owner = jnp.take_along_axis(order, at, -1)
    bit = jnp.where(behind, bits, bits - 1)[..., None].astype(jnp.uint8)
    of_owner = jnp.take_along_axis(code, owner[..., None], -2)
    amplitude = jnp.where(
        behind,
        jnp.take_along_axis(levels.second, owner, -1),
        jnp.take_along_axis(levels.first, owner, -1),
    )
    return ResidualArray(
        base,
        pack_bits((of_owner >> bit & 1) == 1),
        levels.scale,
        levels.offset,
        amplitude,
        position,
        chosen.num_salient,
    )


def fz_rmq(
    w: Float[Array, "*batch n k"],
    bits: int,
    *,
    inputs: Float[Array, "*batch m k"] | None = None,
    rotation: int = 0,
    method: Method = "joint",
    salience: Salience = "kurtosis",
    shares: Sequence[float] = SHARES,
) -> ResidualArray:
    """Quantizes w to n bits on average.

    Args:
      w: float [..., N, K], K a multiple of 8. A NumPy array is sorted by NumPy, 20
        times faster than by XLA on a CPU.
      bits: n, 2 to 4.
      inputs: rows of the activation that w meets, [..., M, K], for the output error;
        without them the share of salient channels minimizes the error of w itself.
      rotation: width of the block Hadamard to fold in along K first; 0 for none.
        Rotation and salience compete for the same outliers.
      method: "joint" fit of base and branches; "uniform": every channel the
        least-squares uniform grid of its bits, which is MPQ-DM v1's three-way bit
        assignment; "greedy": branches fitted one after the other.
      salience: "kurtosis", or "error" [ours]: what a channel loses from two branches
        to none.
      shares: of salient channels to try; (0,) gives every channel n bits.

    Returns:
      The array. With 0 among the shares and no inputs its squared error is not above
      that of the n-bit least-squares uniform grid.

    Raises:
      ValueError: other bits, an unknown method or salience, a share outside 0 to 0.5,
        K that does not fit, inputs of another shape.
    """
    return quantize_residual(
        w,
        bits,
        inputs=inputs,
        rotation=rotation,
        method=method,
        salience=salience,
        shares=shares,
    )[0]


def quantize_residual(
    w: Float[Array, "*batch n k"],
    bits: int,
    *,
    inputs: Float[Array, "*batch m k"] | None = None,
    rotation: int = 0,
    method: Method = "joint",
    salience: Salience = "kurtosis",
    shares: Sequence[float] = SHARES,
) -> tuple[ResidualArray, Selection]:
    """`fz_rmq`, and what the search for the share found."""
    _check(w, bits, inputs, method, salience, shares)
    if rotation:
        w = rotate(jnp.asarray(w, jnp.float32), rotation)
        inputs = None if inputs is None else rotate(inputs, rotation)
    on_host = isinstance(w, np.ndarray) or jax.default_backend() == "cpu"
    traced = isinstance(w, jax.core.Tracer)
    if on_host and not traced:
        values = np.asarray(w, np.float32)
        ordered: Any = np.sort(values, -1)
    else:
        values = w.astype(jnp.float32)
        ordered = jnp.sort(values, -1)
    if inputs is not None:
        inputs = inputs.astype(jnp.float32)
    found, chosen = _fitted(
        values, ordered, inputs, bits, method, salience, tuple(shares)
    )
    return replace(found, rotation=rotation), chosen


def _check(w, bits, inputs, method, salience, shares) -> None:
    whole = isinstance(bits, int) and not isinstance(bits, bool)
    if not whole or not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(
            f"bits: expected a whole number from {MIN_BITS} to {MAX_BITS}, found "
            f"{bits!r}"
        )
    if w.ndim < 2 or not w.shape[-1] or w.shape[-1] % 8:
        raise ValueError(
            f"expected weights [..., N, K] with K a multiple of 8, found shape "
            f"{tuple(w.shape)}"
        )
    if method not in METHODS:
        raise ValueError(f"method: expected one of {METHODS}, found {method!r}")
    if salience not in SALIENCE:
        raise ValueError(f"salience: expected one of {SALIENCE}, found {salience!r}")
    if not shares or not all(0 <= share <= 0.5 for share in shares):
        raise ValueError(f"shares: expected numbers from 0 to 0.5, found {shares}")
    if inputs is not None:
        expected = (*w.shape[:-2], "M", w.shape[-1])
        found = tuple(inputs.shape)
        if found[:-2] != w.shape[:-2] or found[-1] != w.shape[-1]:
            raise ValueError(
                f"inputs: expected {expected} for weights {tuple(w.shape)}, found "
                f"{found}"
            )


__all__ = [
    "SALIENCE",
    "SHARES",
    "Selection",
    "fz_rmq",
    "kurtosis",
    "quantize_residual",
    "select",
]
