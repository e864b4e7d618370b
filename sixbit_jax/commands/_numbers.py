"""Numbers of the command line: each with its range, refused while parsing."""

import argparse
import math
from collections.abc import Callable

# More steps than the noise schedules of the supported networks have.
MAX_STEPS = 1000
# Latents; far beyond what any network was trained for, and still countable.
MAX_FRAMES = 10_000
MAX_SIDE = 10_000
MAX_COUNT = 1_000_000
MAX_SEED = 2**64 - 1
MAX_GUIDANCE = 1000.0
# Of ratios, distances and weights of losses: beyond any of use.
MAX_RATIO = 1e6
# Of learning rates: a step of a whole unit is far too long for any weight.
MAX_RATE = 1.0


def whole(minimum: int, maximum: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number of a range.

    Args:
      minimum: the smallest.
      maximum: the largest.
    """

    def number(word: str) -> int:
        try:
            value = int(word)
        except ValueError:
            value = None
        if value is None or not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(
                f"expected a whole number, at least {minimum} and at most {maximum}, "
                f"found {word!r}"
            )
        return value

    return number


def real(minimum: float, maximum: float) -> Callable[[str], float]:
    """The type of an option that takes a finite number of a range.

    Args:
      minimum: the smallest.
      maximum: the largest.
    """

    def number(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(
                f"expected a finite number, at least {minimum:g} and at most "
                f"{maximum:g}, found {word!r}"
            )
        return value

    return number


def reals(word: str) -> list[float]:
    """Finite numbers with commas between them."""
    number = real(-1e6, 1e6)
    return [number(part) for part in word.split(",")]
