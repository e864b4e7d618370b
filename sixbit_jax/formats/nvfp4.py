"""`NVFP4Array`: 4.5 bits per value and 4 bytes per tensor, as a pytree."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.numerics import hadamard, nvfp4
from sixbit_jax.formats._checks import described, stored_bytes


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class NVFP4Array:
    """A matrix [..., N, K] in NVFP4, blocks of 16 along K.

    value = E2M1 * block_scale * tensor_scale, rotated along K if `rotation` is set.

    Attributes:
      codes: uint8 [..., N, K/2], two E2M1 codes per byte, even index in the low nibble.
      block_scales: float8_e4m3fn [..., N, K/16].
      tensor_scale: float32 [...].
      rotation: 0, or the width of the block Hadamard that was folded in along K. The
        values are then those of W H, and activations must be rotated the same way.
    """

    codes: Array
    block_scales: Array
    tensor_scale: Array
    rotation: int = 0

    def __post_init__(self) -> None:
        _check_rotation(self.rotation, None)
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
        _check_rotation(self.rotation, self.shape)

    @classmethod
    def quantize(cls, w: Float[Array, "*batch n k"], *, rotation: int = 0) -> Self:
        """Quantizes w, each matrix of the last two axes with its own tensor scale.

        Args:
          w: float [..., N, K], K a multiple of 16.
          rotation: width of the block Hadamard to fold in along K first; 0 for none.

        Raises:
          ValueError: K does not fit blocks of 16 or the rotation.
        """
        _check_rotation(rotation, w.shape)
        if rotation:
            w = hadamard.block_hadamard(w.astype(jnp.float32), rotation)
        return cls(*nvfp4.quantize(w), rotation=rotation)

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape [..., N, K]."""
        return (*self.codes.shape[:-1], 2 * self.codes.shape[-1])

    @property
    def ndim(self) -> int:
        """Number of logical axes."""
        return len(self.codes.shape)

    @property
    def dtype(self) -> jnp.dtype:
        """Logical dtype, float32."""
        return jnp.dtype(jnp.float32)

    @property
    def nbytes(self) -> int:
        """Stored bytes: 4.5 bits per value and 4 bytes per tensor scale."""
        return stored_bytes(self.codes, self.block_scales, self.tensor_scale)

    def dequantize(
        self, dtype: jax.typing.DTypeLike = jnp.float32
    ) -> Float[Array, "*batch n k"]:
        """The stored values [..., N, K]; still rotated if `rotation` is set."""
        return nvfp4.dequantize(
            self.codes, self.block_scales, self.tensor_scale, dtype=dtype
        )

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], int]:
        """Children with their attribute names; the rotation is static."""
        names = ("codes", "block_scales", "tensor_scale")
        return (
            tuple((jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in names),
            self.rotation,
        )

    @classmethod
    def tree_unflatten(cls, rotation: int, children: tuple[Any, ...]) -> Self:
        """Rebuilds without validation: vmap and scan pass slices and placeholders."""
        self = object.__new__(cls)
        for name, child in zip(
            ("codes", "block_scales", "tensor_scale"), children, strict=True
        ):
            object.__setattr__(self, name, child)
        object.__setattr__(self, "rotation", rotation)
        return self


def _check_rotation(rotation: int, shape: tuple[int, ...] | None) -> None:
    if not isinstance(rotation, int) or rotation < 0 or rotation & (rotation - 1):
        raise ValueError(f"rotation must be 0 or a power of two, found {rotation!r}")
    if shape is not None and rotation and shape[-1] % rotation:
        raise ValueError(
            f"rotation {rotation} must divide the last axis of an array of shape "
            f"{tuple(shape)}"
        )
