"""Arithmetic whose last bit does not depend on the machine.

XLA's float32 division on NVIDIA GPUs is not the IEEE one (on an H200 30% of random
quotients differ in the last bit), its cast to E4M3 rounds twice now and then, and both
its CPU and its GPU code may flush subnormals. Codes are chosen by comparing against
rounding boundaries, so one ulp is enough to make two machines disagree. The functions
here use single multiplications, integer operations and normal numbers only; on an H200
and on CPUs the codes and scales built from them are equal bit for bit.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, UInt8

# Scales are kept in this range: inside it no product of the formats is subnormal and
# none overflows. Tensors below it lose their smallest values, above it saturate.
SMALLEST_SCALE = 2.0**-100
LARGEST_SCALE = 2.0**100

E4M3_MAX = 448.0
E4M3_SMALLEST = 2.0**-9


def float_bits(x: Float[Array, "..."]) -> jax.Array:
    """The bits of float32 values as uint32."""
    return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)


def reciprocal(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """1/x truncated to 24 bits, by integer long division.

    Args:
      x: positive, 2^-126 <= x < 2^103.

    Returns:
      The largest float32 that is not above 1/x; the same bits on every machine.
    """
    bits = float_bits(x)
    exponent = bits >> 23
    significand = (bits & 0x7FFFFF) | 0x800000
    # 2^47 // significand in three steps of eight bits, as uint32 allows.
    high = jnp.uint32(1 << 31) // significand
    rest = jnp.uint32(1 << 31) - high * significand
    middle = (rest << 8) // significand
    rest = (rest << 8) - middle * significand
    low = (rest << 8) // significand
    quotient = (high << 16) + (middle << 8) + low
    power = jax.lax.bitcast_convert_type((230 - exponent) << 23, jnp.float32)
    return quotient.astype(jnp.float32) * power


def round_significand(x: Float32[Array, "..."], bits: int) -> Float32[Array, "..."]:
    """Rounds positive values to `bits` significand bits (half away from zero)."""
    dropped = 24 - bits
    raw = float_bits(x) + jnp.uint32(1 << (dropped - 1))
    kept = raw & jnp.uint32(0xFFFFFFFF & ~((1 << dropped) - 1))
    return jax.lax.bitcast_convert_type(kept, jnp.float32)


def encode_e4m3(x: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """Bits of the float8_e4m3fn nearest to x >= 0: ties to even, saturating at 448.

    A cast would do the same on most machines, but saturates on none that follow IEEE
    (values above 448 become NaN) and rounds twice where it goes through float16.
    NaN gives the NaN of E4M3, 0x7F.
    """
    x = x.astype(jnp.float32)
    clipped = jnp.minimum(x, E4M3_MAX)
    bits = float_bits(clipped)
    # Normal numbers: add half of the last kept place, minus one unless it is odd.
    rounded = (bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20
    normal = rounded - jnp.uint32(120 << 3)
    # Subnormals are multiples of 2^-9, which is the last place of floats near 2^14.
    anchor = jnp.float32(2.0**14)
    subnormal = float_bits(clipped + anchor) - float_bits(anchor)
    code = jnp.where(clipped < 2.0**-6, subnormal, normal)
    return jnp.where(jnp.isnan(x), 0x7F, code).astype(jnp.uint8)


def round_e4m3(x: Float[Array, "..."]) -> Array:
    """The float8_e4m3fn nearest to x >= 0; see `encode_e4m3`."""
    return jax.lax.bitcast_convert_type(encode_e4m3(x), jnp.float8_e4m3fn)


def finite_amax(
    x: Float[Array, "..."], axis: int | tuple[int, ...]
) -> Float32[Array, "..."]:
    """max|x| over the finite values along `axis`, float32 (0 if there are none)."""
    magnitude = jnp.abs(x.astype(jnp.float32))
    return jnp.max(jnp.where(jnp.isfinite(magnitude), magnitude, 0.0), axis=axis)
