"""The one call that pipelines make, whatever the encoder."""

from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class TextEncoder(Protocol):
    """What an encoder of this package offers."""

    def encode(
        self,
        ids: Int[Array, "batch T"],
        mask: Bool[Array, "batch T"] | None = None,
        *,
        dtype: jnp.dtype,
        kernels: bool,
    ) -> Float[Array, "batch ..."]:
        """Prompt embeddings as the network of its pipeline takes them."""
        ...


def encode(
    model: TextEncoder,
    ids: Int[Array, "batch T"],
    mask: Bool[Array, "batch T"] | None = None,
    dtype: jax.typing.DTypeLike = jnp.bfloat16,
    *,
    kernels: bool = False,
) -> Float[Array, "batch ..."]:
    """Token ids -> prompt embeddings; a pure function, made to be jitted.

    With dtype float32, products are exact to float32 on a GPU too, where the default
    would be TF32.

    Args:
      model: T5, UMT5, Llama or CLIP.
      ids: token ids, padded on the right.
      mask: true (or 1) for tokens. CogVideoX passes none: its padding is read, and all
        rows are used. With a mask, T5 and UMT5 give zeros in the rows of padding.
      dtype: what linears compute in, and of the result.
      kernels: whether a GPU kernel may expand stored weights.

    Returns:
      [batch, T, D] from T5, UMT5 and Llama, the pooled [batch, D] from CLIP.

    Raises:
      ValueError: for ids that are not [batch, T] integers, and a mask of another shape.
    """
    dtype = jnp.dtype(dtype)
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"ids: expected integers [batch, T], found {ids.dtype} {tuple(ids.shape)}"
        )
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"mask: expected the shape of the ids {tuple(ids.shape)}, found "
            f"{tuple(mask.shape)}"
        )
    precision = "highest" if dtype == jnp.float32 else None
    with jax.default_matmul_precision(precision):
        return model.encode(ids, mask, dtype=dtype, kernels=kernels)
