"""Fits the levels of rows: a uniform base and binary residual branches, jointly.

The part of FZ-RMQ (`mpq_dm`) that knows one row at a time. The values that a row with
two branches can take are

    level(q, e1, e2) = scale q + offset + first e1 + second e2,   e1, e2 in {-1, 1}

and with fewer branches the amplitudes of the absent ones are 0. Lloyd's alternation:
every weight to its nearest level, then the four numbers by least squares. A row is
sorted once; after that the weights nearest to a level are an interval, and a round
costs a binary search instead of a pass over the row.

Rows with 0, 1 and 2 branches share one program: an absent branch only makes levels
that are equal, which changes no sum.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

Method = Literal["joint", "uniform", "greedy"]
METHODS = ("joint", "uniform", "greedy")
KINDS = 3
"""Numbers of branches: 0, 1, 2."""

# Clipped starts of the uniform grid, as fractions of the row's range on either side.
_CLIPS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)
_START_ROUNDS = 3
_UNIFORM_ROUNDS = 12
_JOINT_ROUNDS = 20


class Levels(NamedTuple):
    """The levels of every row.

    Attributes:
      scale, offset: those of the base codes.
      first, second: amplitudes of the residual branches, 0 where there is none.
    """

    scale: Float32[Array, "*batch n"]
    offset: Float32[Array, "*batch n"]
    first: Float32[Array, "*batch n"]
    second: Float32[Array, "*batch n"]


def basis(base_bits: int, branches: int = 2) -> Float[np.ndarray, "levels 4"]:
    """(q, 1, e1, e2) of every code; base code in the low bits, then the branches.

    Columns of absent branches are 0.
    """
    code = np.arange(2 ** (base_bits + 2))
    columns = [code % 2**base_bits, np.ones_like(code)]
    for branch in range(2):
        sign = 2 * (code >> (base_bits + branch) & 1) - 1
        columns.append(sign if branch < branches else 0 * code)
    return np.stack(columns, 1).astype(np.float32)


def _uniform_basis(base_bits: int, branches: int) -> Float[np.ndarray, "levels 2"]:
    """(number of the level in a uniform grid, 1) of every code."""
    code = np.arange(2 ** (base_bits + 2))
    level = code % 2**base_bits
    for branch in range(branches):
        level = 2 * level + (code >> (base_bits + branch) & 1)
    return np.stack([level, np.ones_like(level)], 1).astype(np.float32)


class _Row(NamedTuple):
    """A sorted row and its prefix sums, [K] and [K + 1]."""

    values: Array
    sums: Array


def _tally(row: _Row, levels: Array) -> tuple[Array, Array]:
    """Number and sum of the values nearest to each level."""
    # Ranks by comparison: sorting 16 numbers takes XLA's CPU code ten times as long.
    number = jnp.arange(len(levels))
    equal = (levels[:, None] == levels) & (number[:, None] > number)
    rank = ((levels[:, None] > levels) | equal).sum(-1)
    ordered = jnp.where(rank[:, None] == number, levels[:, None], 0.0).sum(0)
    middle = (ordered[1:] + ordered[:-1]) / 2
    inside = jnp.searchsorted(row.values, middle)
    size = jnp.int32(row.values.shape[0])
    edges = jnp.concatenate([jnp.zeros((1,), jnp.int32), inside, size[None]])
    count = jnp.diff(edges).astype(levels.dtype)
    return count[rank], jnp.diff(row.sums[edges])[rank]


def _solve(matrix: Array, right: Array) -> Array:
    """x of matrix x = right for a small positive definite matrix, by elimination.

    Compiles in a tenth of the time of the batched library call, and fuses.
    """
    size = right.shape[0]
    rows = [jnp.append(matrix[i], right[i]) for i in range(size)]
    for i in range(size):
        rows[i] = rows[i] / rows[i][i]
        for j in range(size):
            if j != i:
                rows[j] = rows[j] - rows[j][i] * rows[i]
    return jnp.stack([row[-1] for row in rows])


def _round(row: _Row, columns: Array, theta: Array) -> Array:
    """One round of Lloyd's alternation on the numbers of a row."""
    count, total = _tally(row, columns @ theta)
    size = row.values.shape[0]
    normal = columns.T @ ((count / size)[:, None] * columns)
    right = columns.T @ (total / size) - normal @ theta
    # Columns may depend on each other where codes are unused or a branch is absent:
    # a little of the identity keeps such numbers as they are.
    ridge = 1e-6 * jnp.trace(normal) * jnp.eye(len(theta))
    return theta + _solve(normal + ridge, right)


def _error(row: _Row, columns: Array, theta: Array) -> Array:
    """Squared error without the row's own squares, from the tally."""
    levels = columns @ theta
    count, total = _tally(row, levels)
    return (count * levels * levels - 2 * total * levels).sum()


def _alternate(row: _Row, columns: Array, theta: Array, rounds: int) -> Array:
    return jax.lax.fori_loop(0, rounds, lambda _, t: _round(row, columns, t), theta)


def _uniform(row: _Row, columns: Array) -> Array:
    """(scale, offset) of the least-squares uniform grid, from clipped starts."""
    low, high = row.values[0], row.values[-1]
    steps = columns[:, 0].max()

    def attempt(clip: Array) -> tuple[Array, Array]:
        cut = clip * (high - low)
        start = jnp.stack([(high - low - 2 * cut) / steps, low + cut])
        theta = _alternate(row, columns, start, _START_ROUNDS)
        return theta, _error(row, columns, theta)

    found, errors = jax.lax.map(attempt, jnp.asarray(_CLIPS))
    best = found[jnp.argmin(errors)]
    return _alternate(row, columns, best, _UNIFORM_ROUNDS)


def _with_branches(uniform: Array, branches: Array) -> Array:
    """A uniform grid written with residual branches, which halve the base's steps."""
    scale, offset = uniform
    first = jnp.asarray([0.0, 0.5, 1.0])[branches] * scale
    second = jnp.asarray([0.0, 0.0, 0.5])[branches] * scale
    base = scale * jnp.asarray([1.0, 2.0, 4.0])[branches]
    return jnp.stack([base, offset + first + second, first, second])


def _greedy(row: _Row, base_bits: int) -> Array:
    """Base alone, and each branch on what the ones before it left, [kinds, 4].

    Weights then still go to the nearest level, which is better than greedy codes.
    """
    base = _uniform(row, jnp.asarray(_uniform_basis(base_bits, 0)))
    theta = jnp.concatenate([base, jnp.zeros((2,))])
    found = [theta]
    for branch in range(KINDS - 1):
        levels = jnp.sort(jnp.asarray(basis(base_bits, branch)) @ theta)
        middle = (levels[1:] + levels[:-1]) / 2
        rest = row.values - levels[jnp.searchsorted(middle, row.values)]
        mean = rest.mean()
        theta = theta.at[1].add(mean)
        theta = theta.at[2 + branch].set(jnp.abs(rest - mean).mean())
        found.append(theta)
    return jnp.stack(found)


def _fit_row(
    values: Float[Array, "k"], base_bits: int
) -> Float[Array, "kinds candidates 4"]:
    """Candidates of one sorted row for each number of branches.

    Uniform grid, greedy branches, and the joint fits that start from either.
    """
    middle = values[0] / 2 + values[-1] / 2
    # An exact power of two keeps squares of tiny and huge rows in range.
    _, exponent = jnp.frexp(jnp.maximum(values[-1] - middle, jnp.float32(1e-30)))
    unit = jnp.ldexp(jnp.float32(1), exponent)
    values = (values - middle) / unit
    row = _Row(values, jnp.append(jnp.float32(0), jnp.cumsum(values)))
    kinds = range(KINDS)
    columns = np.stack([basis(base_bits, kind) for kind in kinds])
    even = np.stack([_uniform_basis(base_bits, kind) for kind in kinds])

    def one_kind(given: tuple) -> Array:
        kind, columns, even, greedy = given
        uniform = _with_branches(_uniform(row, even), kind)
        starts = jnp.stack([uniform, greedy])
        run = partial(_alternate, row, columns, rounds=_JOINT_ROUNDS)
        return jnp.concatenate([starts, jax.lax.map(run, starts)])

    greedy = _greedy(row, base_bits)
    found = jax.lax.map(one_kind, (jnp.arange(KINDS), columns, even, greedy))
    return found * unit + middle * jnp.asarray([0.0, 1.0, 0.0, 0.0])


def _values(levels: Levels, base_bits: int) -> Float32[Array, "*batch n levels"]:
    """The value of every code."""
    q, _, e1, e2 = basis(base_bits).T
    scale, offset, first, second = (part[..., None] for part in levels)
    return scale * q + offset + first * e1 + second * e2


def squared_error(
    w: Float[Array, "*batch n k"], levels: Levels, *, base_bits: int
) -> Float32[Array, "*batch n"]:
    """Squared error of each row with every weight at its nearest level."""
    values = _values(levels, base_bits)
    # One term after the other: XLA fuses it into a single pass over w.
    nearest = jnp.abs(w - values[..., :1])
    for number in range(1, values.shape[-1]):
        nearest = jnp.minimum(nearest, jnp.abs(w - values[..., number, None]))
    return (nearest * nearest).sum(-1)


def fit_levels(
    w: Float[Array | np.ndarray, "*batch n k"],
    ordered: Float[Array | np.ndarray, "*batch n k"],
    *,
    base_bits: int,
    method: Method = "joint",
) -> tuple[Levels, Float32[Array, "kinds *batch n"]]:
    """Levels of every row with 0, 1 and 2 branches, and their squared errors.

    Args:
      w: weights, float32.
      ordered: the same rows, sorted.
      base_bits: bits of the base codes.
      method: "joint"; "uniform" for the least-squares uniform grid of the same number
        of bits; "greedy" for branches that are fitted one after the other.

    Returns:
      The levels, each array [3, ..., N], and the squared error of each row. With
      "joint" it is never above that of "uniform" and "greedy".
    """
    allowed = {
        "joint": (True, True, True, True),
        "uniform": (True, False, False, False),
        "greedy": (False, True, False, False),
    }[method]
    # Which candidates count is an array: one program serves all methods.
    return _fit(w, ordered, np.asarray(allowed), base_bits=base_bits)


@partial(jax.jit, static_argnames="base_bits")
def _fit(
    w: Array, ordered: Array, allowed: Array, *, base_bits: int
) -> tuple[Levels, Array]:
    flat = ordered.reshape(-1, ordered.shape[-1])
    found = jax.vmap(lambda row: _fit_row(row, base_bits))(flat)
    found = jnp.moveaxis(found, 0, 2).reshape(KINDS, -1, *w.shape[:-1], 4)

    def best(candidates: Array) -> tuple[Levels, Array]:
        def measured(given: tuple[Array, Array]) -> Array:
            theta, counts = given
            levels = Levels(*jnp.moveaxis(theta, -1, 0))
            error = squared_error(w, levels, base_bits=base_bits)
            # Least squares of a degenerate row may fail: never better, then.
            return jnp.where(jnp.isfinite(error) & counts, error, jnp.inf)

        errors = jax.lax.map(measured, (candidates, allowed))
        first = jnp.argmin(errors, 0)[None]
        theta = jnp.take_along_axis(candidates, first[..., None], 0)[0]
        least = jnp.take_along_axis(errors, first, 0)[0]
        return Levels(*jnp.moveaxis(theta, -1, 0)), least

    return jax.lax.map(best, found)


def nearest_codes(
    w: Float[Array, "*batch n k"], levels: Levels, *, base_bits: int
) -> UInt8[Array, "*batch n k"]:
    """The code of the nearest level: base code in the low bits, then the branches.

    Of equal levels (of a row without a second branch) any may be taken.
    """
    values = _values(levels, base_bits)
    order = jnp.argsort(values, -1)
    ordered = jnp.take_along_axis(values, order, -1)
    middle = (ordered[..., 1:] + ordered[..., :-1]) / 2
    rank = jnp.zeros(w.shape, jnp.uint8)
    for number in range(middle.shape[-1]):
        rank += (w > middle[..., number, None]).astype(jnp.uint8)
    # XLA's CPU code would otherwise repeat the comparisons inside the gather.
    rank = jax.lax.optimization_barrier(rank)
    order = order.astype(jnp.uint8)
    return jnp.take_along_axis(order, rank.astype(jnp.int32), -1)


def decode(
    codes: UInt8[Array, "*batch n k"], levels: Levels, *, base_bits: int
) -> Float32[Array, "*batch n k"]:
    """The values of codes."""
    code = codes.astype(jnp.int32)
    value = (code % 2**base_bits) * levels.scale[..., None] + levels.offset[..., None]
    for branch, amplitude in enumerate((levels.first, levels.second)):
        sign = 2 * (code >> (base_bits + branch) & 1) - 1
        value = value + amplitude[..., None] * sign
    return value


__all__ = [
    "KINDS",
    "METHODS",
    "Levels",
    "Method",
    "basis",
    "decode",
    "fit_levels",
    "nearest_codes",
    "squared_error",
]
