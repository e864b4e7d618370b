"""`NVFP4Array`: 4.5 bits per value and 4 bytes per tensor, as a pytree."""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from pallas_kernels.numerics import hadamard, nvfp4
from pallas_kernels.nvfp4_expand.api import nvfp4_expand
from sixbit_jax.formats._checks import described
from sixbit_jax.formats.stored import ArrayLayout, StoredWeight, check_rotation


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class NVFP4Array(StoredWeight):
    """A matrix [..., N, K] in NVFP4, blocks of 16 along K.

    value = E2M1 * block_scale * tensor_scale, rotated along K if `rotation` is set.

    Attributes:
      codes: uint8 [..., N, K/2], two E2M1 codes per byte, even index in the low nibble.
      block_scales: float8_e4m3fn [..., N, K/16].
      tensor_scale: float32 [...].
      rotation: 0, or the width of the block Hadamard that was folded in along K. The
        values are then those of W H, and activations must be rotated the same way.

    >>> import jax.numpy as jnp
    >>> from sixbit_jax import NVFP4Array
    >>> stored = NVFP4Array.quantize(jnp.linspace(-1, 1, 64 * 128).reshape(64, 128))
    >>> stored.shape, stored.nbytes  # 4.5 bits per value
    ((64, 128), 4612)
    >>> stored.dequantize(jnp.bfloat16).dtype
    dtype(bfloat16)
    """

    array_names: ClassVar[tuple[str, ...]] = ("codes", "block_scales", "tensor_scale")

    codes: Array
    block_scales: Array
    tensor_scale: Array
    rotation: int = 0

    def __post_init__(self) -> None:
        check_rotation(self.rotation, None)
        leaves = (self.codes, self.block_scales, self.tensor_scale)
        if not all(described(leaf) for leaf in leaves):
            return
        codes, scales, tensor = (tuple(leaf.shape) for leaf in leaves)
        for name, leaf, dtype in zip(
            ("codes", "block_scales", "tensor_scale"),
            leaves,
            (jnp.uint8, jnp.float8_e4m3fn, jnp.float32),
            strict=True,
        ):
            if leaf.dtype != dtype:
                raise ValueError(
                    f"NVFP4Array.{name} must be {jnp.dtype(dtype)}, found "
                    f"{leaf.dtype} with shape {tuple(leaf.shape)}"
                )
        fits = len(codes) >= 2 and codes[-1] % (nvfp4.BLOCK // 2) == 0
        if not fits or scales != (*codes[:-1], codes[-1] * 2 // nvfp4.BLOCK):
            raise ValueError(
                f"NVFP4Array needs codes [..., N, K/2] and block_scales "
                f"[..., N, K/16], found {codes} and {scales}"
            )
        if tensor != codes[:-2]:
            raise ValueError(
                f"NVFP4Array.tensor_scale must have the leading axes of codes "
                f"{codes}, which are {codes[:-2]}, found {tensor}"
            )
        check_rotation(self.rotation, self.shape)

    @classmethod
    def quantize(cls, w: Float[Array, "*batch n k"], *, rotation: int = 0) -> Self:
        """Quantizes w, each matrix of the last two axes with its own tensor scale.

        Args:
          w: float [..., N, K], K a multiple of 16.
          rotation: width of the block Hadamard to fold in along K first; 0 for none.

        Raises:
          ValueError: K does not fit blocks of 16 or the rotation.
        """
        check_rotation(rotation, w.shape)
        if rotation:
            w = hadamard.block_hadamard(w.astype(jnp.float32), rotation)
        return cls(*nvfp4.quantize(w), rotation=rotation)

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape [..., N, K]."""
        return (*self.codes.shape[:-1], 2 * self.codes.shape[-1])

    def dequantize(
        self, dtype: jax.typing.DTypeLike = jnp.float32
    ) -> Float[Array, "*batch n k"]:
        """The stored values [..., N, K]; still rotated if `rotation` is set."""
        return nvfp4.dequantize(
            self.codes, self.block_scales, self.tensor_scale, dtype=dtype
        )

    def expand_int8(
        self, *, implementation: str | None = None
    ) -> tuple[Int8[Array, "*batch n k"], Float[Array, "*batch n"]]:
        """Rounded to 127 steps of each row's largest magnitude, by `nvfp4_expand`."""
        values, scales = nvfp4_expand(
            *self.arrays().values(), to="int8", implementation=implementation
        )
        return values, scales

    def expand_bfloat16(
        self, *, implementation: str | None = None
    ) -> Float[Array, "*batch n k"]:
        """`dequantize(bfloat16)`, by `nvfp4_expand`."""
        expanded = nvfp4_expand(
            *self.arrays().values(), to="bfloat16", implementation=implementation
        )
        return expanded  # pyrefly: ignore[bad-return]

    @property
    def format_name(self) -> str:
        """ "nvfp4"."""
        return "nvfp4"

    @classmethod
    def layout(cls, format_name: str, shape: tuple[int, ...]) -> ArrayLayout | None:
        """The arrays of one matrix [N, K], or None if the name is another format's.

        Raises:
          ValueError: the shape cannot be stored in this format.
        """
        if format_name != "nvfp4":
            return None
        if len(shape) != 2 or shape[1] % nvfp4.BLOCK:
            raise ValueError(
                f"expected [N, K] with K a multiple of {nvfp4.BLOCK}, found "
                f"{list(shape)}"
            )
        rows, columns = shape
        scales = (rows, columns // nvfp4.BLOCK)
        return {
            "codes": ((rows, columns // 2), np.dtype(np.uint8)),
            "block_scales": (scales, jnp.dtype(jnp.float8_e4m3fn)),
            "tensor_scale": ((), np.dtype(np.float32)),
        }

    @classmethod
    def from_arrays(
        cls, format_name: str, arrays: dict[str, Any], rotation: int
    ) -> Self:
        """The weight whose `arrays()`, `format_name` and `rotation` these are."""
        del format_name
        return cls(**arrays, rotation=rotation)
