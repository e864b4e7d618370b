"""Definition of a computed block's statistics and of a skipped block's output."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from pallas_kernels.block_stats.cache import (
    CachedDelta,
    CacheFormat,
    check_format,
    decode,
    encode,
)


class BlockStats(NamedTuple):
    """What a computed block leaves behind.

    Attributes:
      gamma: sum|Y - X| / sum|X| of each batch element, [...].
      delta_change: sum|delta - old| / sum|old| of each batch element; infinite without
        an old delta.
      delta: Y - X in its storage format.
      row_sums: of each row, the sums of |delta|, |X|, |delta - old| and |old| that the
        ratios are made of, [..., M, 4]; the last two are 0 without an old delta.
    """

    gamma: Float32[Array, "*batch"]
    delta_change: Float32[Array, "*batch"]
    delta: CachedDelta
    row_sums: Float32[Array, "*batch m 4"]


def block_stats(
    x: Float[Array, "*batch m k"],
    y: Float[Array, "*batch m k"],
    old: CachedDelta | None,
    *,
    cache_format: CacheFormat,
) -> BlockStats:
    """All sums in float32, of the exact delta and the decoded old one."""
    check_format(cache_format)
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    delta = y - x
    axes = (-2, -1)
    gamma = jnp.sum(jnp.abs(delta), axis=axes) / jnp.sum(jnp.abs(x), axis=axes)
    if old is None:
        change = jnp.full(gamma.shape, jnp.inf, jnp.float32)
        later = [jnp.zeros_like(delta)] * 2
    else:
        before = decode(old)
        later = [delta - before, before]
        change = jnp.sum(jnp.abs(delta - before), axis=axes) / jnp.sum(
            jnp.abs(before), axis=axes
        )
    sums = [jnp.sum(jnp.abs(part), axis=-1) for part in (delta, x, *later)]
    return BlockStats(gamma, change, encode(delta, cache_format), jnp.stack(sums, -1))


def apply_delta(
    x: Float[Array, "*batch m k"], cached: CachedDelta
) -> Float[Array, "*batch m k"]:
    """Output of a skipped block: X + delta in float32, rounded to the dtype of x.

    XLA fuses this into one pass over both, so that it needs no kernel.
    """
    return (x.astype(jnp.float32) + decode(cached)).astype(x.dtype)


def finish(
    sums: Float32[Array, "*batch m 4"], delta: CachedDelta, *, has_old: bool
) -> BlockStats:
    """Statistics from per-row sums of |delta|, |x|, |delta - old| and |old|."""
    total = jnp.sum(sums, axis=-2)
    gamma = total[..., 0] / total[..., 1]
    infinite = jnp.full(gamma.shape, jnp.inf, jnp.float32)
    change = total[..., 2] / total[..., 3] if has_old else infinite
    change = jax.lax.convert_element_type(change, jnp.float32)
    return BlockStats(gamma, change, delta, sums)
