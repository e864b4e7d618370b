"""Where parameters go as they are read: one device, or a mesh and its parts of them."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sixbit_jax.meshes import FSDP, automatic, name_problems
from sixbit_jax.nn.axes import MATRIX


@dataclass(frozen=True)
class Placement:
    """Where arrays of a checkpoint go.

    Attributes:
      mesh: the devices; None is the default one.
    """

    mesh: Mesh | None

    def _sharding(self, shape: tuple[int, ...], first: int) -> NamedSharding:
        """Rows of matrices along `fsdp`; `first` is the axis of the rows.

        Rows that do not divide stay whole; the sampler says so.
        """
        assert self.mesh is not None
        parts = self.mesh.shape.get(FSDP, 1)
        split = len(shape) == first + MATRIX and not shape[first] % parts
        names = (None,) * first + (FSDP,) if split and parts > 1 else ()
        return NamedSharding(self.mesh, PartitionSpec(*names))

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """A stack of layers, empty: [layers, ...]."""
        if self.mesh is None:
            return jnp.zeros(shape, dtype)
        sharding = self._sharding(shape, 1)
        return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()

    def layer(self, array: np.ndarray) -> Any:
        """One layer of a stack, on its way there."""
        if self.mesh is None:
            return array
        return self._put(np.asarray(array), self._sharding(array.shape, 0))

    def whole(self, array: np.ndarray, dtype: Any) -> jax.Array:
        """A parameter outside of stacks."""
        if self.mesh is None:
            return jnp.asarray(array, dtype)
        # Cast on the host: a device would hold both.
        cast = np.asarray(array).astype(dtype)
        return self._put(cast, NamedSharding(self.mesh, PartitionSpec()))

    @staticmethod
    def _put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        """Each device's part, from this process's copy of the whole."""
        return jax.make_array_from_callback(
            array.shape, sharding, lambda where: array[where]
        )


def placement(mesh: Mesh | None) -> Placement:
    """For a mesh of any kind of axes.

    Raises:
      ValueError: the mesh has other axes.
    """
    if mesh is None:
        return Placement(None)
    problems = name_problems(mesh)
    if problems:
        raise ValueError("load:\n  " + "\n  ".join(problems))
    return Placement(automatic(mesh))


__all__ = ["Placement", "placement"]
