"""Schedules that are given step by step instead of spaced by a rule."""

import itertools
import math
from typing import Any

from sixbit_jax.reading.messages import brief

_MOST = 10_000


def check_given(
    name: str, values: Any, top: float, *, above: float | None = 0.0
) -> tuple[float, ...] | None:
    """Noise levels or timesteps as they are kept.

    Args:
      name: the name of the field, for errors.
      values: numbers, falling from step to step; None: not given.
      top: the largest that is possible.
      above: what all are larger than; None: 0 is possible.

    Raises:
      ValueError: for anything else.
    """
    if values is None:
        return None
    lowest = f"above {above:g}" if above is not None else "from 0"
    expected = (
        f"{name}: expected 1 to {_MOST:,} numbers {lowest} up to {top:g}, each smaller "
        "than the one before"
    )
    try:
        found = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{expected}; found {brief(values)}") from error
    falling = all(b < a for a, b in itertools.pairwise(found))
    inside = all(
        math.isfinite(v) and v <= top and (v >= 0 if above is None else v > above)
        for v in found
    )
    if not (0 < len(found) <= _MOST and falling and inside):
        raise ValueError(f"{expected}; found {brief(list(found))}")
    return found


def check_count(num_steps: int, given: int | None) -> None:
    """Refuses a number of steps that is not the given one.

    Raises:
      ValueError: there are more or fewer.
    """
    if given is not None and num_steps != given:
        raise ValueError(
            f"num_steps: expected {given}, one for each step of the given schedule, "
            f"found {num_steps}"
        )


__all__ = ["check_count", "check_given"]
