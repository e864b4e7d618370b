"""Which weights of a network FZ-RMQ stores, without data and without tuning."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from sixbit_jax.formats import ResidualArray
from sixbit_jax.methods.mpq_dm.residual_weights import Salience, fz_rmq
from sixbit_jax.quantizers.residual_fit import Method


@dataclass(frozen=True)
class ResidualRecipe:
    """Which weights are stored with residual branches, and how.

    Attributes:
      bits: 2 to 4, on average over the output channels of every weight.
      rotation: width of the block Hadamard folded into the weights of sites; 0: none.
        It levels the kurtosis that salience is chosen by.
      small_batch: also the weights of linears that run on few rows (modulation, time
        and text embedding), which are never rotated.
      method, salience: see `fz_rmq`.
    """

    bits: int = 3
    rotation: int = 0
    small_batch: bool = True
    method: Method = "joint"
    salience: Salience = "kurtosis"
    multiple: ClassVar[int] = 8

    @property
    def compress(self) -> Callable[..., ResidualArray]:
        """The function (weight, *, rotation) -> ResidualArray."""
        return partial(
            fz_rmq, bits=self.bits, method=self.method, salience=self.salience
        )

    @property
    def format_name(self) -> str:
        """As in a checkpoint's header."""
        return f"residual{self.bits}"

    @property
    def fit(self) -> str:
        """How the branches are found, in words."""
        return f"{self.method} residual fit"


__all__ = ["ResidualRecipe"]
