"""FZ-RMQ of MPQ-DMv2 (arXiv 2507.04290): residual mixed precision at 2 to 4 bits.

A reconstruction from the paper's abstract, its framework figure and the code of its
predecessor MPQ-DM (v1); text and code of v2 were not available.

Every output channel gets an (n - 1)-bit uniform base plus 0, 1 or 2 binary residual
branches (unsalient, normal, salient), n bits on average:

    w_hat = s (q - z) + sum_k (mu_k + a_k sign(.))

Salience is the kurtosis of the channel; as many channels are salient as are unsalient,
and their share is the one of 0, 10, .. 50% with the least error. Our choice: base and
branches are fitted jointly (`residual_fit`), which contains the n-bit uniform grid as
a special case and starts from it; s z and the mu_k are one number per channel.
"""

from collections.abc import Sequence
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
      salience: the salience of each channel, the larger the more salient.
      errors: squared error of each channel with 0, 1 and 2 branches.
      shares: the shares of salient channels to try, each 0 to 0.5.
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


class ResidualFit(NamedTuple):
    """Everything about the rows but their codes; where tuning starts.

    Attributes:
      levels: of each row with the branches it has, amplitudes 0 for those it has not.
      selection: who has how many.
    """

    levels: Levels
    selection: Selection


def branches_of(selection: Selection) -> Int32[Array, "*batch n"]:
    """Number of branches of each row, 0, 1 or 2."""
    position, salient = selection.position, selection.num_salient[..., None]
    first = position < position.shape[-1] - salient
    return first.astype(jnp.int32) + (position < salient)


@partial(jax.jit, static_argnames=("bits", "salience", "shares"))
def _selected(
    w: Array,
    levels: Levels,
    error: Array,
    inputs: Array | None,
    bits: int,
    salience: Salience,
    shares: tuple[float, ...],
) -> ResidualFit:
    if inputs is not None:
        error = _output_errors(w, levels, bits - 1, inputs)
    by = kurtosis(w) if salience == "kurtosis" else error[0] - error[2]
    chosen = select(by, jnp.moveaxis(error, 0, -1), shares)
    kind = branches_of(chosen)[None]
    own = jax.tree.map(lambda part: jnp.take_along_axis(part, kind, 0)[0], levels)
    return ResidualFit(own, chosen)


@partial(jax.jit, static_argnames=("bits", "rotation"))
def pack_residual(
    w: Float[Array, "*batch n k"], fit: ResidualFit, *, bits: int, rotation: int = 0
) -> ResidualArray:
    """The weights at their nearest levels, packed.

    Args:
      w: rotated already, if rotation is set.
      fit: levels of every row.
      bits: n.
      rotation: what is folded into w.
    """
    return ResidualArray.from_codes(
        nearest_codes(w.astype(jnp.float32), fit.levels, base_bits=bits - 1),
        fit.levels,
        fit.selection.position,
        fit.selection.num_salient,
        bits=bits,
        rotation=rotation,
    )


def fz_rmq(
    w: Float[Array | np.ndarray, "*batch n k"],
    bits: int,
    *,
    inputs: Float[Array | np.ndarray, "*batch m k"] | None = None,
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
      salience: "kurtosis", or "error", which is ours: what a channel loses from two
        branches to none.
      shares: the shares of salient channels to try; (0,) gives every channel n bits.

    Returns:
      The array. With 0 among the shares and no inputs its squared error is not above
      that of the n-bit least-squares uniform grid.

    Raises:
      ValueError: other bits, an unknown method or salience, a share outside 0 to 0.5,
        K that does not fit, inputs of another shape.
    """
    fit = fit_residual(
        w,
        bits,
        inputs=inputs,
        rotation=rotation,
        method=method,
        salience=salience,
        shares=shares,
    )
    if rotation:
        w = rotate(jnp.asarray(w, jnp.float32), rotation)
    return pack_residual(w, fit, bits=bits, rotation=rotation)


def fit_residual(
    w: Float[Array | np.ndarray, "*batch n k"],
    bits: int,
    *,
    inputs: Float[Array | np.ndarray, "*batch m k"] | None = None,
    rotation: int = 0,
    method: Method = "joint",
    salience: Salience = "kurtosis",
    shares: Sequence[float] = SHARES,
) -> ResidualFit:
    """The levels that `fz_rmq` stores, and what the search for the share found."""
    _check(w, bits, inputs, method, salience, shares)
    if rotation:
        w = rotate(jnp.asarray(w, jnp.float32), rotation)
        if inputs is not None:
            inputs = rotate(jnp.asarray(inputs), rotation)
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
    levels, error = fit_levels(values, ordered, base_bits=bits - 1, method=method)
    return _selected(values, levels, error, inputs, bits, salience, tuple(shares))


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
    "ResidualFit",
    "Selection",
    "branches_of",
    "fit_residual",
    "fz_rmq",
    "kurtosis",
    "pack_residual",
    "select",
]
