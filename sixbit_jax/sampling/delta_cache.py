"""The Temporal Delta Cache's storage: one delta per slot, in a chosen format.

It is part of the scan carry and updated in place, so that one copy exists.
"""

from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.block_stats import cache

Format = Literal["bf16", "int8", "nvfp4", "float32"]
CACHE_FORMATS = (*cache.CACHE_FORMATS, "float32")

DeltaCache = Any
"""A pytree whose leaves have a leading slot axis."""


def checked_format(cache_format: str) -> Format:
    """The name of a cache format; raises ValueError for any other."""
    if cache_format not in CACHE_FORMATS:
        raise ValueError(
            f"cache_format: expected one of {', '.join(CACHE_FORMATS)}; "
            f"found {cache_format!r}"
        )
    return cast(Format, cache_format)


def encode(delta: Float[Array, "batch tokens D"], cache_format: Format) -> DeltaCache:
    """One delta as it is stored (without the slot axis)."""
    if cache_format == "float32":
        return delta.astype(jnp.float32)
    return cache.encode(delta, cache_format)


def decode(stored: DeltaCache) -> Float[Array, "batch tokens D"]:
    """The delta of one slot in float32."""
    if isinstance(stored, cache.CachedDelta):
        return cache.decode(stored)
    return stored


def init(num_slots: int, shape: tuple[int, ...], cache_format: Format) -> DeltaCache:
    """An empty cache of `num_slots` deltas of `shape`: decodes to zeros."""
    one = jax.eval_shape(lambda: encode(jnp.zeros(shape, jnp.float32), cache_format))
    return jax.tree.map(lambda x: jnp.zeros((num_slots, *x.shape), x.dtype), one)


def read(deltas: DeltaCache, slot: Int[Array, ""]) -> DeltaCache:
    """What is stored in `slot`, in the cache's format; see `decode`."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, slot, keepdims=False), deltas
    )


def write(deltas: DeltaCache, slot: Int[Array, ""], stored: DeltaCache) -> DeltaCache:
    """The cache with an encoded delta in `slot`."""
    return jax.tree.map(
        lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, slot, 0),
        deltas,
        stored,
    )


def nbytes(deltas: DeltaCache) -> int:
    """Bytes of all leaves."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(deltas))
