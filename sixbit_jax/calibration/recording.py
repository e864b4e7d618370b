"""What calibration reads: the signals and errors of recorded runs."""

from collections.abc import Iterable
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Float

from sixbit_jax.measured import known


class Recording(NamedTuple):
    """Runs of one model with one number of steps and branches.

    Attributes:
      gamma: relative change of each block.
      error: relative L1 error of each site in NVFP4 (E_rel); NaN where not measured.
      skip: blocks that were not computed; their gamma and error are ignored.
      starts: steps besides the first in which nothing is known yet: where the second
        network of a pair takes over, its policy starts anew.
    """

    gamma: Float[np.ndarray, "runs steps branches blocks"]
    error: Float[np.ndarray, "runs steps branches blocks sites"]
    skip: Bool[np.ndarray, "runs steps branches blocks"]
    starts: tuple[int, ...] = ()

    @classmethod
    def from_traces(cls, traces: Iterable[Any], starts: tuple[int, ...] = ()) -> Self:
        """Stacks the traces of several runs.

        Args:
          traces: objects with `gamma`, `error` and `skip` of one run each, as
            runs of `prepare(..., record_errors=True)` return them.
          starts: see the class.

        Raises:
          ValueError: no trace, or traces of different shapes.
        """
        rows = [(np.asarray(t.gamma), np.asarray(t.error), t.skip) for t in traces]
        shapes = sorted({row[1].shape for row in rows})
        if len(shapes) != 1:
            raise ValueError(
                "calibration needs traces of one shape [steps, branches, blocks, "
                f"sites], found {shapes or 'no trace'}"
            )
        gamma, error, skip = (np.stack(part) for part in zip(*rows, strict=True))
        return cls(gamma, error, skip.astype(bool), starts).checked()

    def checked(self) -> Self:
        """Itself, as float64, with NaN where nothing was measured.

        Raises:
          ValueError: shapes that do not fit, fewer than two steps.
        """
        gamma, error = np.asarray(self.gamma), np.asarray(self.error)
        skip = np.asarray(self.skip, bool)
        if (
            gamma.ndim != 4
            or error.shape[:-1] != gamma.shape
            or skip.shape != gamma.shape
        ):
            raise ValueError(
                "a recording needs gamma and skip [runs, steps, branches, blocks] and "
                f"error [..., sites], found {gamma.shape}, {skip.shape} and "
                f"{error.shape}"
            )
        if gamma.shape[1] < 2:
            raise ValueError(
                f"calibration needs runs of at least 2 steps, found {gamma.shape[1]}"
            )
        return type(self)(known(gamma), known(error), skip, self.starts)

    def known_gamma(self) -> Float[np.ndarray, "runs steps branches blocks"]:
        """gamma of the last computed step before each step; NaN where there is none."""
        known = np.full(self.gamma.shape, np.nan)
        last = known[:, 0]
        for step in range(1, self.gamma.shape[1]):
            last = np.where(self.skip[:, step - 1], last, self.gamma[:, step - 1])
            if step in self.starts:
                last = np.full_like(last, np.nan)
            known[:, step] = last
        return known
