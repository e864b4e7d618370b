"""Bisection for numbers that only sampling can judge, such as tau."""

import math
from collections.abc import Callable
from typing import NamedTuple


class SearchResult(NamedTuple):
    """What a search found.

    Attributes:
      value: the argument found.
      achieved: the function there.
      tried: (argument, function) of every evaluation, in order.
    """

    value: float
    achieved: float
    tried: tuple[tuple[float, float], ...]


def find_target(
    function: Callable[[float], float],
    target: float,
    *,
    low: float = 0.0,
    high: float = 1.0,
    limit: float = 64.0,
    tolerance: float = 0.01,
    max_evaluations: int = 16,
) -> SearchResult:
    """The argument at which a rising function comes nearest to a target.

    For tau: `function` samples calibration prompts and returns the skip fraction.
    `high` is doubled, up to `limit`, until the function reaches the target.

    Args:
      function: does not fall; may rise in steps.
      target: value to reach.
      low, high: first interval, 0 <= low < high.
      limit: largest argument to try.
      tolerance: stop when the function is this near.
      max_evaluations: bound on calls.

    Raises:
      ValueError: a bad interval or bound, or a target that the function does not
        come near to (within 5 tolerances) for any argument tried.
    """
    return _search(
        function, target, (low, high, limit), tolerance, max_evaluations, None
    )


def find_largest(
    quality: Callable[[float], float],
    floor: float,
    *,
    low: float = 0.0,
    high: float = 1.0,
    limit: float = 64.0,
    tolerance: float = 0.01,
    max_evaluations: int = 16,
) -> SearchResult:
    """The largest argument at which a falling quality stays at or above a floor.

    For tau under a quality floor (PSNR in dB, say). `high` is doubled, up to `limit`,
    while the quality holds. Stops when the interval is shorter than `tolerance` times
    its upper end.

    Raises:
      ValueError: a bad interval or bound, or a quality below the floor even at `low`.
    """
    return _search(
        quality, floor, (low, high, limit), tolerance, max_evaluations, floor
    )


def _search(
    function: Callable[[float], float],
    target: float,
    interval: tuple[float, float, float],
    tolerance: float,
    max_evaluations: int,
    floor: float | None,
) -> SearchResult:
    low, high, limit = interval
    if not (0 <= low < high <= limit and tolerance > 0 and max_evaluations >= 3):
        raise ValueError(
            "search: expected 0 <= low < high <= limit, tolerance > 0 and at least 3 "
            f"evaluations, found low {low}, high {high}, limit {limit}, tolerance "
            f"{tolerance}, {max_evaluations} evaluations"
        )
    tried: list[tuple[float, float]] = []
    # A target is met in the function's value, a floor in the argument.
    shortest = 1e-6 if floor is None else tolerance

    def go_up(argument: float) -> bool:
        result = float(function(argument))
        if math.isnan(result):
            raise ValueError(f"search: the function is NaN at {argument}")
        tried.append((argument, result))
        return result < target if floor is None else result >= floor

    def near() -> bool:
        return floor is None and abs(tried[-1][1] - target) <= tolerance

    if not go_up(low) and not near():
        word = "above" if floor is None else "below"
        raise ValueError(
            f"search: the function is {tried[0][1]:.4g} at {low}, already {word} "
            f"{target}"
        )
    bounded = False
    while len(tried) < max_evaluations and not near():
        argument = (low + high) / 2 if bounded else high
        if not go_up(argument):
            high, bounded = argument, True
        elif bounded:
            low = argument
        elif high == limit:
            break
        else:
            low, high = argument, min(2 * high, limit)
        if bounded and high - low <= shortest * high:
            break
    if floor is not None:
        best = max(pair for pair in tried if pair[1] >= floor)
        return SearchResult(*best, tuple(tried))
    best = min(tried, key=lambda pair: abs(pair[1] - target))
    if abs(best[1] - target) > 5 * tolerance:
        values = [pair[1] for pair in tried]
        raise ValueError(
            f"search: {target} was not reached, the nearest of {len(tried)} "
            f"evaluations is {best[1]:.4g} at {best[0]:.4g} (they range from "
            f"{min(values):.4g} to {max(values):.4g})"
        )
    return SearchResult(*best, tuple(tried))
