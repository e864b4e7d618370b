"""Storage formats of a cached delta."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from pallas_kernels.numerics import int8, nvfp4

CacheFormat = Literal["bf16", "int8", "nvfp4"]
CACHE_FORMATS: tuple[str, ...] = get_args(CacheFormat)


class CachedDelta(NamedTuple):
    """A block's delta as it is stored; a pytree of arrays.

    Attributes:
      values: bfloat16 [..., M, K], int8 [..., M, K] or, for NVFP4, packed codes uint8
        [..., M, K/2].
      scales: one float32 scale per token, [..., M]: the INT8 scale, or the second level
        of NVFP4, which is per token here so that one pass suffices. None for bf16.
      block_scales: float8_e4m3fn [..., M, K/16] for NVFP4, else None.
    """

    values: Array
    scales: Float32[Array, "*batch m"] | None = None
    block_scales: Array | None = None

    @property
    def format(self) -> str:
        """Which of `CACHE_FORMATS` this is."""
        if self.scales is None:
            return "bf16"
        return "int8" if self.block_scales is None else "nvfp4"


def check_format(cache_format: str) -> None:
    """Raises ValueError for an unknown format."""
    if cache_format not in CACHE_FORMATS:
        raise ValueError(
            f"cache_format must be one of {CACHE_FORMATS}, found {cache_format!r}"
        )


def encode(delta: Float[Array, "*batch m k"], cache_format: CacheFormat) -> CachedDelta:
    """Stores a delta.

    Raises:
      ValueError: an unknown format.
    """
    check_format(cache_format)
    if cache_format == "bf16":
        return CachedDelta(delta.astype(jnp.bfloat16))
    if cache_format == "int8":
        return CachedDelta(*int8.quantize(delta))
    rows = delta.astype(jnp.float32)[..., None, :]
    finite = jnp.all(jnp.isfinite(rows), axis=(-2, -1))
    scales = jnp.where(finite, nvfp4.tensor_scale_of(rows), jnp.nan)
    codes, block_scales, scales = nvfp4.quantize(rows, scales)
    return CachedDelta(codes[..., 0, :], scales, block_scales[..., 0, :])


def decode(
    cached: CachedDelta, dtype: jax.typing.DTypeLike = jnp.float32
) -> Float[Array, "*batch m k"]:
    """The delta that is stored."""
    if cached.scales is None:
        return cached.values.astype(dtype)
    if cached.block_scales is None:
        return int8.dequantize(cached.values, cached.scales, dtype)
    return nvfp4.dequantize(
        cached.values[..., None, :],
        cached.block_scales[..., None, :],
        cached.scales,
        dtype,
    )[..., 0, :]
