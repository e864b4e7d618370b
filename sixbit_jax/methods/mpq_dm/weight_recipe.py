"""Which weights of a network FZ-RMQ stores, without data and without tuning."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sixbit_jax.formats import ResidualArray
from sixbit_jax.methods.mpq_dm.residual_weights import Salience, fz_rmq
from sixbit_jax.quantizers.residual_fit import Method
from sixbit_jax.quantizers.uniform import UniformRecipe


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

    @property
    def compress(self) -> Callable[..., ResidualArray]:
        """The function (weight, *, rotation) -> ResidualArray."""
        return partial(
            fz_rmq, bits=self.bits, method=self.method, salience=self.salience
        )

    def rotation_of(self, role: str | None, in_features: int) -> int | None:
        """Rotation of a weight, or None if it stays as it is.

        Raises:
          ValueError: if K does not fit the rotation.
        """
        same = UniformRecipe(rotation=self.rotation, small_batch=self.small_batch)
        return same.rotation_of(role, in_features)


__all__ = ["ResidualRecipe"]
