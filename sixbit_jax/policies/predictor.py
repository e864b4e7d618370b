"""The linear error model of DMPQ: E_rel = alpha * gamma + beta."""

from dataclasses import dataclass

import numpy as np

from sixbit_jax.policies._common import StaticArray
from sixbit_jax.policies.base import BlockGrid


@dataclass(frozen=True, eq=False)
class ErrorPredictor:
    """Predicts a site's NVFP4 error from its block's change one step earlier.

        E_rel[t] = alpha * gamma[t-1] + beta

    Compared and hashed by value.

    Attributes:
      sites: names of the S sites.
      alpha: slope, [L, S].
      beta: intercept, [L, S].
    """

    sites: tuple[str, ...]
    alpha: np.ndarray
    beta: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", tuple(self.sites))
        for name in ("alpha", "beta"):
            values = np.array(getattr(self, name), np.float32)
            if values.ndim != 2 or values.shape[1] != len(self.sites):
                raise ValueError(
                    f"ErrorPredictor.{name} must be [blocks, {len(self.sites)}] for "
                    f"the sites {self.sites}, found shape {values.shape}"
                )
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                block, site = bad[0]
                raise ValueError(
                    f"ErrorPredictor.{name} must be finite, found "
                    f"{values[block, site]} in block {block}, site "
                    f"{self.sites[site]} ({len(bad)} such values)"
                )
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if self.alpha.shape != self.beta.shape:
            raise ValueError(
                f"ErrorPredictor needs one beta per alpha, found shapes "
                f"{self.alpha.shape} and {self.beta.shape}"
            )

    def for_grid(self, grid: BlockGrid) -> tuple[np.ndarray, np.ndarray]:
        """alpha and beta [L, S] in the order of the grid's sites.

        Raises:
          ValueError: a site is missing, or the number of blocks differs.
        """
        missing = [site for site in grid.sites if site not in self.sites]
        problems = []
        if missing:
            problems.append(
                f"sites {missing} of the model are missing from the predictor, which "
                f"has {list(self.sites)}"
            )
        if len(self.alpha) != grid.num_blocks:
            problems.append(
                f"the model has {grid.num_blocks} blocks, the predictor "
                f"{len(self.alpha)}"
            )
        if problems:
            raise ValueError("dmpq: " + "; ".join(problems))
        order = [self.sites.index(site) for site in grid.sites]
        return self.alpha[:, order], self.beta[:, order]

    def _key(self) -> tuple[object, ...]:
        return self.sites, StaticArray(self.alpha), StaticArray(self.beta)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ErrorPredictor) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())
