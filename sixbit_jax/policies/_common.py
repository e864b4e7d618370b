"""Checks and small pieces shared by the policies."""

import math

import numpy as np
from jaxtyping import Array, Bool, Int
from numpy.typing import ArrayLike, DTypeLike

from sixbit_jax.policies.base import (
    Plan,
    PolicyState,
    Stats,
    StepIndex,
)
from sixbit_jax.reading.messages import brief


def checked_number(
    owner: str,
    name: str,
    value: float,
    *,
    low: float = 0.0,
    high: float = math.inf,
    finite: bool = False,
) -> float:
    """`value` as a float within [low, high], infinity excluded if `finite`.

    Raises:
      ValueError: it is not a number or out of range.
    """
    # A bool is no number, nor is a text of one; what NumPy and JAX make is.
    try:
        if isinstance(value, bool | np.bool_ | str | bytes):
            raise TypeError(value)
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{owner}: {name} must be a number, found {brief(value)}"
        ) from error
    if not low <= number <= high or (finite and math.isinf(number)):
        kind = "finite and " if finite else ""
        raise ValueError(
            f"{owner}: {name} must be {kind}within [{low}, {high}], found "
            f"{brief(value)}"
        )
    return number


def checked_count(owner: str, name: str, value: int, *, low: int) -> int:
    """`value` as an int of at least `low`.

    Raises:
      ValueError: it is not an integer or too small.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{owner}: {name} must be an integer, found {brief(value)}")
    if value < low:
        raise ValueError(
            f"{owner}: {name} must be at least {low}, found {brief(value)}"
        )
    return int(value)


def block_mask(
    owner: str, blocks: tuple[int, ...] | None, num_blocks: int
) -> np.ndarray:
    """bool [L], true for the listed blocks; None lists all.

    Raises:
      ValueError: a block is not one of 0 .. num_blocks - 1.
    """
    if blocks is None:
        return np.ones(num_blocks, bool)
    outside = [b for b in blocks if not 0 <= b < num_blocks]
    if outside:
        raise ValueError(
            f"{owner}: blocks {outside} do not exist, the model has {num_blocks}"
        )
    mask = np.zeros(num_blocks, bool)
    mask[list(blocks)] = True
    return mask


def is_last(step: StepIndex) -> Bool[Array, ""]:
    """Whether this is the last step."""
    return step.index >= step.count - 1


def no_update(state: PolicyState, plan: Plan, stats: Stats) -> PolicyState:
    """The `update` of policies that learn nothing."""
    del plan, stats
    return state


def with_skips(
    plan: Plan, skip: Bool[Array, "blocks"], skips_in_a_row: Int[Array, "blocks"]
) -> Plan:
    """`plan` with `skip` added, and `refresh` where a block returns from skipping."""
    skip = plan.skip | skip
    return plan._replace(
        skip=skip, refresh=(plan.refresh | (skips_in_a_row > 0)) & ~skip
    )


class StaticArray:
    """A read-only NumPy array that is hashed and compared by value.

    Lets frozen dataclasses with arrays in them, and so whole policies, be compared.
    """

    def __init__(self, values: ArrayLike, dtype: DTypeLike | None = None) -> None:
        self.values = np.array(values, dtype)
        self.values.setflags(write=False)

    def _key(self) -> tuple[object, ...]:
        return self.values.shape, self.values.dtype.str, self.values.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StaticArray) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())
